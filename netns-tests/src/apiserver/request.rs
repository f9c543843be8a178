//! What a request asks for: its path and query, read. PURE.

use hyper::Method;

use super::admission::Part;
use super::failure::{Cause, Failure};
use super::kind::{GROUPS, Resource};
use super::selector::Selector;

/// As RBAC names them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Verb {
    Get,
    List,
    Watch,
    Create,
    Update,
    Patch,
    Delete,
}

impl Verb {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::List => "list",
            Self::Watch => "watch",
            Self::Create => "create",
            Self::Update => "update",
            Self::Patch => "patch",
            Self::Delete => "delete",
        }
    }

    pub(super) fn is_write(self) -> bool {
        !matches!(self, Self::Get | Self::List | Self::Watch)
    }
}

/// A request about objects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Call {
    pub(super) verb: Verb,
    pub(super) resource: Resource,
    /// Empty for kinds outside namespaces, and for all namespaces.
    pub(super) namespace: String,
    /// Empty for a list, a watch and a create.
    pub(super) name: String,
    pub(super) part: Part,
    pub(super) query: Query,
}

impl Call {
    /// The resource as rules name it.
    pub(super) fn wanted(&self) -> String {
        let plural = self.resource.kind.plural();
        if self.part == Part::Status { format!("{plural}/status") } else { plural.to_owned() }
    }

    /// The call that a path and a query are; `None` for paths that are not about objects.
    pub(super) fn read(method: &Method, path: &str, query: &str) -> Option<Result<Self, Failure>> {
        let mut steps: Vec<_> = path.trim_matches('/').split('/').map(decoded).collect();
        let group = match steps.first()?.as_str() {
            "api" if steps.get(1)? == "v1" => "",
            "apis" if steps.get(2)? == "v1" => GROUPS.into_iter().find(|group| *group == steps[1])?,
            _ => return None,
        };
        steps.drain(..if group.is_empty() { 2 } else { 3 });
        let mut namespace = String::new();
        if steps.len() > 2 && steps[0] == "namespaces" && steps[2] != "status" {
            namespace = steps[1].clone();
            steps.drain(..2);
        }
        let mut steps = steps.into_iter();
        let plural = steps.next()?;
        let (name, part, more) = (steps.next().unwrap_or_default(), steps.next(), steps.next());
        let Some(resource) = Resource::all_in(group).find(|resource| resource.kind.plural() == plural) else {
            return Some(Err(Failure::no_resource()));
        };
        let part = match part.as_deref() {
            None => Part::Main,
            Some("status") if resource.kind.has_status() => Part::Status,
            Some(_) => return Some(Err(Failure::no_resource())),
        };
        let elsewhere = !namespace.is_empty() && !resource.kind.is_namespaced();
        if more.is_some() || elsewhere {
            return Some(Err(Failure::no_resource()));
        }
        let query = Query::read(query);
        let verb = match *method {
            Method::GET if !name.is_empty() => Verb::Get,
            Method::GET if matches!(query.raw("watch"), "true" | "1") => Verb::Watch,
            Method::GET => Verb::List,
            Method::POST if name.is_empty() => Verb::Create,
            Method::PUT if !name.is_empty() => Verb::Update,
            Method::PATCH if !name.is_empty() => Verb::Patch,
            Method::DELETE if !name.is_empty() => Verb::Delete,
            _ => return Some(Err(Failure::method_not_allowed())),
        };
        Some(Ok(Self { verb, resource, namespace, name, part, query }))
    }

    /// Both selectors of the query.
    pub(super) fn selector(&self) -> Result<Selector, Failure> {
        Selector::parse(self.resource, self.query.raw("fieldSelector"), self.query.raw("labelSelector"))
    }
}

/// From which version a list or a watch begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum From {
    /// Whatever is newest.
    Newest,
    /// What the server has at hand.
    Any,
    At(u64),
}

/// Query parameters.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Query(Vec<(String, String)>);

impl Query {
    fn read(query: &str) -> Self {
        let pairs = query.split('&').filter(|pair| !pair.is_empty());
        let split = |pair: &str| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decoded(&name.replace('+', " ")), decoded(&value.replace('+', " ")))
        };
        Self(pairs.map(split).collect())
    }

    /// A parameter; empty if it is not there.
    pub(super) fn raw(&self, name: &str) -> &str {
        self.0.iter().find(|(is, _)| is == name).map_or("", |(_, value)| value)
    }

    pub(super) fn is_true(&self, name: &str) -> bool {
        matches!(self.raw(name), "true" | "1")
    }

    pub(super) fn number(&self, name: &str) -> Result<Option<u64>, Failure> {
        match self.raw(name) {
            "" => Ok(None),
            text => text.parse().map(Some).map_err(|_| {
                Failure::bad_request(format!("strconv.ParseInt: parsing \"{text}\": invalid syntax"))
            }),
        }
    }

    pub(super) fn from(&self) -> Result<From, Failure> {
        match self.raw("resourceVersion") {
            "" => Ok(From::Newest),
            "0" => Ok(From::Any),
            text => text
                .parse()
                .map(From::At)
                .map_err(|_| Failure::bad_request(format!("invalid resource version \"{text}\""))),
        }
    }

    /// What a real server checks of the options of a list.
    pub(super) fn check_list(&self) -> Result<(), Failure> {
        let mut causes = Vec::new();
        let matching = self.raw("resourceVersionMatch");
        let refused = |why| Cause::forbidden("resourceVersionMatch", why);
        if !matching.is_empty() {
            if self.raw("resourceVersion").is_empty() {
                causes.push(refused("resourceVersionMatch is forbidden unless resourceVersion is provided"));
            }
            if !self.raw("continue").is_empty() {
                causes.push(refused("resourceVersionMatch is forbidden when continue is provided"));
            }
            if matching == "Exact" && self.raw("resourceVersion") == "0" {
                causes.push(refused("resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\""));
            }
        }
        if !self.raw("sendInitialEvents").is_empty() {
            causes.push(Cause::forbidden("sendInitialEvents", "sendInitialEvents is forbidden for list"));
        }
        checked(&causes)
    }

    /// The same for a watch, where streaming lists are offered or not.
    pub(super) fn check_watch(&self, streaming_lists: bool) -> Result<(), Failure> {
        let mut causes = Vec::new();
        let matching = self.raw("resourceVersionMatch");
        let initial = !self.raw("sendInitialEvents").is_empty();
        let refused = |why| Cause::forbidden("resourceVersionMatch", why);
        if initial {
            if matching != "NotOlderThan" {
                causes
                    .push(refused("sendInitialEvents requires setting resourceVersionMatch to NotOlderThan"));
            }
            if !streaming_lists {
                causes.push(Cause::forbidden(
                    "sendInitialEvents",
                    "sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled",
                ));
            }
        } else if !matching.is_empty() {
            causes.push(refused(
                "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
            ));
        }
        checked(&causes)
    }
}

fn checked(causes: &[Cause]) -> Result<(), Failure> {
    if causes.is_empty() { Ok(()) } else { Err(Failure::invalid_options(causes)) }
}

/// Undoes percent-encoding; what is no encoding stays as it is.
fn decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let code = (*first == b'%').then(|| after.get(..2)).flatten();
        let code = code.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok());
        bytes.push(code.unwrap_or(*first));
        rest = if code.is_some() { &after[2..] } else { after };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(method: Method, path: &str, query: &str, expected: (&str, &str, &str, &str)) {
        let call = Call::read(&method, path, query).expect("it is about objects").expect("it is understood");
        let found = (call.verb.name(), call.wanted(), call.namespace.as_str(), call.name.as_str());
        assert_eq!((found.0, found.1.as_str(), found.2, found.3), expected);
    }

    #[test]
    fn paths_are_read() {
        check(Method::GET, "/api/v1/nodes", "", ("list", "nodes", "", ""));
        check(Method::GET, "/api/v1/nodes", "watch=true&resourceVersion=1", ("watch", "nodes", "", ""));
        check(Method::PATCH, "/api/v1/nodes/a/status", "", ("patch", "nodes/status", "", "a"));
        check(
            Method::POST,
            "/apis/events.k8s.io/v1/namespaces/default/events",
            "",
            ("create", "events", "default", ""),
        );
        check(Method::GET, "/api/v1/namespaces/x/pods/b", "", ("get", "pods", "x", "b"));
        check(Method::GET, "/api/v1/namespaces/x", "", ("get", "namespaces", "", "x"));
        check(Method::GET, "/apis/apps/v1/daemonsets", "", ("list", "daemonsets", "", ""));
    }

    #[test]
    fn what_is_not_served_is_not_found() {
        assert_eq!(Call::read(&Method::GET, "/version", ""), None);
        for path in ["/api/v1/services", "/api/v1/nodes/a/proxy", "/apis/apps/v1/pods"] {
            let failure = Call::read(&Method::GET, path, "").expect("an API's path").expect_err("not served");
            assert_eq!(failure.code, 404, "{path}");
        }
    }

    #[test]
    fn queries_are_decoded() {
        let query = Query::read("fieldSelector=spec.nodeName%3Dnode-1&limit=5&labelSelector=a+in+(b)");
        assert_eq!(query.raw("fieldSelector"), "spec.nodeName=node-1");
        assert_eq!(query.raw("labelSelector"), "a in (b)");
        assert_eq!(query.number("limit"), Ok(Some(5)));
    }
}
