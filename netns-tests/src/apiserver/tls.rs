//! Certificates, made by `openssl`.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::error::{LabError, Result};
use crate::process::{LIMIT, finish, program};

/// A server's certificate and key, and the authority behind them.
#[derive(Debug, Clone)]
pub struct Tls {
    ca: String,
    certificate: PathBuf,
    key: PathBuf,
}

impl Tls {
    /// Makes an authority and a certificate for these addresses and names, each valid for a day, in files of a directory:
    /// `ca.crt`, `tls.crt`, `tls.key`.
    ///
    /// # Errors
    /// If `openssl` is not there, or fails.
    pub fn make(directory: &Path, addresses: &[IpAddr], names: &[&str]) -> Result<Self> {
        let openssl = |line: &str| -> Result<()> {
            let mut command = program("openssl");
            command.args(line.split(' ')).current_dir(directory);
            let began = Instant::now();
            let child =
                command.spawn().map_err(LabError::because("start openssl (Debian package openssl)"))?;
            finish(child, b"", began, LIMIT)?.success("openssl").map(drop)
        };
        let new = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 1";
        openssl(&format!(
            "{new} -keyout ca.key -out ca.crt -subj /CN=lab -addext keyUsage=critical,keyCertSign"
        ))?;
        let addresses = addresses.iter().map(|address| format!("IP:{address}"));
        let names = names.iter().map(|name| format!("DNS:{name}"));
        let all: Vec<_> = addresses.chain(names).collect();
        openssl(&format!(
            "{new} -keyout tls.key -out tls.crt -CA ca.crt -CAkey ca.key -subj /CN=kube-apiserver \
             -addext basicConstraints=critical,CA:FALSE -addext subjectAltName={}",
            all.join(",")
        ))?;
        Self::open(directory)
    }

    /// Takes the three files of a directory.
    ///
    /// # Errors
    /// If the authority's certificate cannot be read.
    pub fn open(directory: &Path) -> Result<Self> {
        let path = directory.join("ca.crt");
        let ca =
            std::fs::read_to_string(&path).map_err(LabError::because(format!("read {}", path.display())))?;
        Ok(Self { ca, certificate: directory.join("tls.crt"), key: directory.join("tls.key") })
    }

    /// The authority's certificate, in PEM.
    pub fn ca(&self) -> &str {
        &self.ca
    }

    pub(super) fn acceptor(&self) -> Result<TlsAcceptor> {
        let path = self.certificate.display();
        let certificates = CertificateDer::pem_file_iter(&self.certificate)
            .and_then(Iterator::collect)
            .map_err(LabError::because(format!("read the certificate {path}")))?;
        let key = PrivateKeyDer::from_pem_file(&self.key)
            .map_err(LabError::because(format!("read the key of {path}")))?;
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .and_then(|builder| builder.with_no_client_auth().with_single_cert(certificates, key))
            .map_err(LabError::because(format!("use the certificate {path}")))?;
        Ok(TlsAcceptor::from(Arc::new(config)))
    }
}
