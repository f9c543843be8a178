//! The `CNI_*` variables of one call.

use std::ffi::OsString;
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;

use podwire_attach::{Owner, PodName};
use podwire_kernel::MacAddr;

use super::address::parse_address;
use super::code;
use super::error::CniError;

/// What a runtime asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verb {
    /// Attach a container to the network.
    Add,
    /// Detach it.
    Del,
    /// Is the attachment still as ADD left it?
    Check,
    /// Remove every attachment that is not listed.
    Gc,
    /// Could an ADD succeed now?
    Status,
    /// Which versions do you speak?
    Version,
}

impl Verb {
    /// All of them.
    pub const ALL: [Self; 6] = [Self::Add, Self::Del, Self::Check, Self::Gc, Self::Status, Self::Version];

    /// As CNI_COMMAND has it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
            Self::Check => "CHECK",
            Self::Gc => "GC",
            Self::Status => "STATUS",
            Self::Version => "VERSION",
        }
    }

    /// Whether the verb is about one container's interface.
    pub fn is_of_container(self) -> bool {
        matches!(self, Self::Add | Self::Del | Self::Check)
    }

    /// Whether the verb takes away. Such a call must get by with whatever it is given: a configuration that was
    /// edited into an invalid one must not keep pods from being removed.
    pub fn is_removal(self) -> bool {
        matches!(self, Self::Del | Self::Gc)
    }
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The environment of one call, validated. TRACEPARENT, TRACESTATE and BAGGAGE, which newer runtimes set, are
/// left where they are: a delegate inherits them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Environment {
    /// CNI_COMMAND.
    pub verb: Verb,
    /// CNI_CONTAINERID; empty for verbs that are not of a container.
    pub container: String,
    /// CNI_IFNAME; empty for verbs that are not of a container.
    pub ifname: String,
    /// CNI_NETNS; never empty for ADD and CHECK, perhaps absent for DEL.
    pub netns: Option<String>,
    /// CNI_ARGS.
    pub args: CniArgs,
    /// CNI_PATH, where other plugins are looked for.
    pub path: Vec<PathBuf>,
    /// CNI_NETNS_OVERRIDE: the host's own network namespace is allowed as CNI_NETNS.
    pub netns_override: bool,
}

/// What CNI_ARGS says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CniArgs {
    /// `IP`: a requested address.
    pub ip: Option<IpAddr>,
    /// `MAC`: a requested MAC address.
    pub mac: Option<MacAddr>,
    /// `K8S_POD_*`, where a pod is named.
    pub pod: Option<PodName>,
}

/// The most bytes of an interface's name: the kernel's IFNAMSIZ (16) less the closing zero byte.
const MAX_IFNAME: usize = 15;

impl Environment {
    /// Reads the environment. `None` where CNI_COMMAND is unset or empty: somebody ran the plugin by hand and
    /// wants to know what it is.
    ///
    /// # Errors
    /// Code 4, naming all missing variables in one message, or the invalid one.
    pub fn parse(
        variables: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<Option<Self>, CniError> {
        let raw = Raw::collect(variables)?;
        if raw.command.is_empty() {
            return Ok(None);
        }
        let verb = Verb::ALL.into_iter().find(|verb| verb.as_str() == raw.command);
        let verb = verb.ok_or_else(|| wrong(format!("unknown CNI_COMMAND: {}", shorten(&raw.command))))?;
        raw.check_present(verb)?;
        let mut environment = Self {
            verb,
            container: String::new(),
            ifname: String::new(),
            netns: None,
            args: CniArgs::default(),
            path: raw.path.split(':').filter(|dir| !dir.is_empty()).map(PathBuf::from).collect(),
            netns_override: raw.netns_override == "1" || raw.netns_override.eq_ignore_ascii_case("true"),
        };
        if verb.is_of_container() {
            check_container(&raw.container)?;
            check_ifname(&raw.ifname)
                .map_err(|why| wrong(format!("invalid interface name in CNI_IFNAME: {why}")))?;
            environment.container = raw.container;
            environment.ifname = raw.ifname;
            environment.netns = Some(raw.netns).filter(|netns| !netns.is_empty());
        }
        if matches!(verb, Verb::Add | Verb::Check) {
            // What DEL removes is known without them: bad arguments must not keep a pod from ending.
            environment.args = CniArgs::parse(&raw.args)?;
        }
        Ok(Some(environment))
    }

    /// Whose attachment the call is about.
    pub fn owner(&self, network: &str) -> Owner {
        Owner::new(network, self.container.clone(), self.ifname.clone())
    }
}

/// The variables as they came.
#[derive(Default)]
struct Raw {
    command: String,
    container: String,
    netns: String,
    ifname: String,
    args: String,
    path: String,
    netns_override: String,
}

impl Raw {
    fn collect(variables: impl IntoIterator<Item = (OsString, OsString)>) -> Result<Self, CniError> {
        let mut raw = Self::default();
        for (name, value) in variables {
            let Some(name) = name.to_str() else { continue };
            let field = match name {
                "CNI_COMMAND" => &mut raw.command,
                "CNI_CONTAINERID" => &mut raw.container,
                "CNI_NETNS" => &mut raw.netns,
                "CNI_IFNAME" => &mut raw.ifname,
                "CNI_ARGS" => &mut raw.args,
                "CNI_PATH" => &mut raw.path,
                "CNI_NETNS_OVERRIDE" => &mut raw.netns_override,
                _ => continue,
            };
            *field = value.into_string().map_err(|_| wrong(format!("{name} is not UTF-8 text")))?;
        }
        Ok(raw)
    }

    /// Names everything that is missing at once, in the reference's order and words.
    fn check_present(&self, verb: Verb) -> Result<(), CniError> {
        let container = verb.is_of_container();
        let netns = matches!(verb, Verb::Add | Verb::Check);
        let required = [
            ("CNI_CONTAINERID", container, &self.container),
            ("CNI_NETNS", netns, &self.netns),
            ("CNI_IFNAME", container, &self.ifname),
            ("CNI_PATH", verb != Verb::Version, &self.path),
        ];
        let missing: Vec<&str> = required
            .into_iter()
            .filter_map(|(name, required, value)| (required && value.is_empty()).then_some(name))
            .collect();
        if missing.is_empty() {
            return Ok(());
        }
        Err(wrong(format!("required env variables [{}] missing", missing.join(","))))
    }
}

fn wrong(message: String) -> CniError {
    CniError::new(code::INVALID_ENVIRONMENT, message)
}

/// A value for an error message: what a hostile caller sends may be long.
fn shorten(text: &str) -> String {
    text.chars().take(120).collect()
}

fn check_container(id: &str) -> Result<(), CniError> {
    if is_name(id) {
        return Ok(());
    }
    let shown = shorten(id);
    Err(wrong(format!(
        "invalid CNI_CONTAINERID: {shown:?} (letters, digits, '_', '.', '-'; the first a letter or digit)"
    )))
}

/// Whether this may be the name of a network or the id of a container: `[A-Za-z0-9][A-Za-z0-9_.-]*`.
pub(crate) fn is_name(text: &str) -> bool {
    text.starts_with(|first: char| first.is_ascii_alphanumeric())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-'))
}

/// Whether the kernel takes this as an interface's name (`dev_valid_name`); the error says why not.
pub(crate) fn check_ifname(name: &str) -> Result<(), String> {
    let shown = shorten(name);
    if name.is_empty() {
        return Err("it is empty".to_owned());
    }
    if name.len() > MAX_IFNAME {
        return Err(format!("{shown:?} has more than {MAX_IFNAME} bytes"));
    }
    if name == "." || name == ".." {
        return Err(format!("{shown:?} is no interface's name"));
    }
    if name.contains(|c: char| c == '/' || c == ':' || c == '\0' || c.is_whitespace()) {
        return Err(format!("{shown:?} has '/', ':' or white space in it"));
    }
    Ok(())
}

impl CniArgs {
    /// Reads `K=V;K=V`. Keys are matched with their case, as everywhere in CNI.
    ///
    /// # Errors
    /// Code 4: a pair without `=`, a bad value of a known key, or an unknown key without `IgnoreUnknown=1`.
    pub fn parse(text: &str) -> Result<Self, CniError> {
        let mut args = Self::default();
        let mut pod = PodName::default();
        let mut unknown = Vec::new();
        let mut ignore_unknown = false;
        let pairs = if text.is_empty() { None } else { Some(text.split(';')) };
        for pair in pairs.into_iter().flatten() {
            let bad = |what: &str| wrong(format!("CNI_ARGS: {what}: {:?}", shorten(pair)));
            let (key, value) = pair.split_once('=').ok_or_else(|| bad("not a pair K=V"))?;
            match key {
                "IgnoreUnknown" => {
                    ignore_unknown = switch(value).ok_or_else(|| bad("expected 1, true, 0 or false"))?;
                }
                // An empty value is no request.
                "IP" | "MAC" if value.is_empty() => {}
                "IP" => args.ip = Some(parse_address(value).ok_or_else(|| bad("not an IP address"))?),
                "MAC" => {
                    let mac = value.parse().ok().filter(|mac: &MacAddr| mac.is_unicast());
                    args.mac = Some(mac.ok_or_else(|| bad("not a unicast MAC address"))?);
                }
                "K8S_POD_NAMESPACE" => pod.namespace = value.to_owned(),
                "K8S_POD_NAME" => pod.name = value.to_owned(),
                "K8S_POD_UID" => pod.uid = value.to_owned(),
                key if key.starts_with("K8S_POD_") => {}
                _ => unknown.push(shorten(pair)),
            }
        }
        if !unknown.is_empty() && !ignore_unknown {
            return Err(wrong(format!(
                "CNI_ARGS: unknown args {unknown:?} (IgnoreUnknown=1 would allow them)"
            )));
        }
        args.pod = Some(pod).filter(|pod| !pod.name.is_empty());
        Ok(args)
    }
}

fn switch(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "1" | "true" => Some(true),
        "0" | "false" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
