//! etcd that asks who one is.

use std::path::{Path, PathBuf};
use std::time::Duration;

use etcd_client::{Client, ConnectOptions, Permission, PermissionType};
use podwire_kernel::testing::run;

use crate::members::Etcd;
use crate::nodes::{Machine, lab};

#[test]
fn a_user_and_a_password() {
    lab(async || {
        let etcd = Etcd::start(1).await;
        let mut client = etcd.client().await;
        for (user, password) in [("root", "secret"), ("podwire", "pass word")] {
            client.user_add(user, password, None).await.unwrap();
            client.role_add(user).await.unwrap();
            client.user_grant_role(user, user).await.unwrap();
        }
        // Its own prefix is all that a node needs.
        let own = Permission::new(PermissionType::Readwrite, "/podwire/").with_prefix();
        client.role_grant_permission("podwire", own).await.unwrap();
        client.auth_enable().await.unwrap();

        let password = etcd.dir().join("password");
        let mut machine = Machine::new(&etcd, 1);
        machine.settings.username = Some("podwire".to_owned());
        machine.settings.password_file = Some(password.clone());
        std::fs::write(&password, "wrong\n").unwrap();
        let mut one = machine.start();
        one.until("say why", |told| told.lost.as_ref().is_some_and(|why| why.contains("password"))).await;
        // It is read again: nobody has to restart anything.
        std::fs::write(&password, "pass word\n").unwrap();
        one.until("join", |told| told.is_member()).await;

        let mut machine = Machine::new(&etcd, 2);
        machine.settings.endpoints = etcd.endpoints();
        let mut nobody = machine.start();
        nobody.until("say why", |told| told.lost.as_ref().is_some_and(|why| why.contains("user"))).await;

        // Tokens end with the member that gave them.
        let mut etcd = etcd;
        etcd.kill(0);
        etcd.start_again();
        let two = Machine {
            settings: one.machine.settings.clone(),
            timing: one.machine.timing.clone(),
            ..Machine::new(&etcd, 3)
        };
        let two = two.join().await;
        two.announce.send_modify(|said| said.mtu = Some(1404));
        one.until("hear of n3", |told| {
            told.snapshot.as_ref().and_then(|snapshot| snapshot.nodes.get("n3")?.mtu) == Some(1404)
        })
        .await;
        let user = ConnectOptions::new().with_user("podwire", "pass word");
        let mut client = Client::connect(etcd.endpoints(), Some(user)).await.unwrap();
        assert!(client.get("/elsewhere", None).await.is_err(), "the role is no wider than it must be");
    });
}

/// A CA, and a certificate of that name signed by it.
fn certificate(dir: &Path, ca: &str, name: &str, usage: &str) -> (PathBuf, PathBuf) {
    let path = |suffix: &str| dir.join(format!("{name}.{suffix}"));
    let text = |path: PathBuf| path.display().to_string();
    let key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];
    let ca_files = (text(dir.join(format!("{ca}.crt"))), text(dir.join(format!("{ca}.key"))));
    if !dir.join(format!("{ca}.crt")).exists() {
        let subject = format!("/CN={ca}");
        let own = ["-x509", "-days", "2", "-subj", &subject, "-keyout", &ca_files.1, "-out", &ca_files.0];
        run("openssl", &[&["req"], &key[..], &own[..]].concat());
    }
    let subject = format!("/CN={name}");
    let request = ["-subj", &subject, "-keyout", &text(path("key")), "-out", &text(path("csr"))];
    run("openssl", &[&["req"], &key[..], &request[..]].concat());
    std::fs::write(path("ext"), format!("subjectAltName=IP:127.0.1.1\nextendedKeyUsage={usage}\n")).unwrap();
    run(
        "openssl",
        &[
            "x509",
            "-req",
            "-days",
            "2",
            "-in",
            &text(path("csr")),
            "-CA",
            &ca_files.0,
            "-CAkey",
            &ca_files.1,
            "-CAcreateserial",
            "-extfile",
            &text(path("ext")),
            "-out",
            &text(path("crt")),
        ],
    );
    (path("crt"), path("key"))
}

#[test]
fn certificates_on_both_sides() {
    lab(async || {
        let mut etcd = Etcd::start_with(0, "https", &[]);
        let dir = etcd.dir().to_owned();
        certificate(&dir, "ca", "server", "serverAuth,clientAuth");
        let (certificate_file, key_file) = certificate(&dir, "ca", "node", "clientAuth");
        certificate(&dir, "other-ca", "stranger", "clientAuth");
        etcd.grow(
            1,
            &[
                "--cert-file={dir}/server.crt",
                "--key-file={dir}/server.key",
                "--trusted-ca-file={dir}/ca.crt",
                "--client-cert-auth",
            ],
        );
        let mut machine = Machine::new(&etcd, 1);
        machine.settings.ca = Some(dir.join("ca.crt"));
        machine.settings.certificate = Some(certificate_file);
        machine.settings.key = Some(key_file);
        let one = machine.join().await;

        type Spoil = fn(&mut Machine, &Path);
        let spoils: [(&str, Spoil); 5] = [
            ("no certificate", |machine, _| {
                (machine.settings.certificate, machine.settings.key) = (None, None)
            }),
            ("another CA's certificate", |machine, dir| {
                machine.settings.certificate = Some(dir.join("stranger.crt"));
                machine.settings.key = Some(dir.join("stranger.key"));
            }),
            ("another CA", |machine, dir| machine.settings.ca = Some(dir.join("other-ca.crt"))),
            ("no such file", |machine, dir| machine.settings.ca = Some(dir.join("missing.crt"))),
            ("no TLS", |machine, _| {
                machine.settings.endpoints = vec!["http://127.0.1.1:2379".to_owned()];
            }),
        ];
        for (what, spoil) in spoils {
            let mut machine = Machine { identity: Machine::new(&etcd, 2).identity, ..one.machine.clone() };
            spoil(&mut machine, &dir);
            let mut node = machine.start();
            node.until(what, |told| told.lost.is_some()).await;
            println!("{what}: {}", node.told.lost.as_ref().unwrap());
            node.listen(Duration::from_millis(200)).await;
            assert!(!node.told.is_member(), "{what}");
        }
    });
}
