//! How the server says no: the `Status` objects of a real one, word by word. PURE.

use serde_json::{Map, Value, json};

use super::kind::Resource;
use super::request::Call;

/// An answer that is no success.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Failure {
    pub(super) code: u16,
    reason: &'static str,
    message: String,
    details: Option<Map<String, Value>>,
}

/// What is wrong with one field of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Cause {
    pub(super) reason: &'static str,
    pub(super) field: String,
    /// With the kind of error in front, as in `Forbidden: …`.
    pub(super) message: String,
}

impl Cause {
    pub(super) fn forbidden(field: impl Into<String>, why: &str) -> Self {
        Self { reason: "FieldValueForbidden", field: field.into(), message: format!("Forbidden: {why}") }
    }

    pub(super) fn required(field: impl Into<String>, why: &str) -> Self {
        let message =
            if why.is_empty() { "Required value".to_owned() } else { format!("Required value: {why}") };
        Self { reason: "FieldValueRequired", field: field.into(), message }
    }

    pub(super) fn too_long(field: impl Into<String>, limit: usize) -> Self {
        let message = format!("Too long: may not be more than {limit} bytes");
        Self { reason: "FieldValueTooLong", field: field.into(), message }
    }

    pub(super) fn invalid(field: impl Into<String>, value: &Value, why: &str) -> Self {
        Self {
            reason: "FieldValueInvalid",
            field: field.into(),
            message: format!("Invalid value: {value}: {why}"),
        }
    }
}

impl Failure {
    /// The object that is the answer's body.
    pub(super) fn status(&self) -> Value {
        let mut status = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.message, "reason": self.reason, "code": self.code,
        });
        if let Some(details) = &self.details {
            status["details"] = Value::Object(details.clone());
        }
        status
    }

    pub(super) fn unauthorized() -> Self {
        Self::plain(401, "Unauthorized", "Unauthorized")
    }

    /// No rule allows it to that user.
    pub(super) fn forbidden(call: &Call, user: &str) -> Self {
        let Call { resource, name, .. } = call;
        let place = match call.namespace.as_str() {
            "" => "at the cluster scope".to_owned(),
            namespace => format!("in the namespace \"{namespace}\""),
        };
        let message = format!(
            "{} is forbidden: User \"{user}\" cannot {} resource \"{}\" in API group \"{}\" {place}",
            subject(*resource, name),
            call.verb.name(),
            call.wanted(),
            resource.group
        );
        Self::plain(403, "Forbidden", message).about(*resource, name)
    }

    /// What an admission policy refuses.
    pub(super) fn denied(resource: Resource, name: &str, policy: &str, why: &str) -> Self {
        let why =
            format!("ValidatingAdmissionPolicy '{policy}' with binding '{policy}' denied request: {why}");
        let message = format!("{} is forbidden: {why}", subject(resource, name));
        let mut failure = Self::plain(422, "Invalid", message).about(resource, name);
        failure.detail("causes", json!([{ "message": why }]));
        failure
    }

    pub(super) fn not_found(resource: Resource, name: &str) -> Self {
        Self::plain(404, "NotFound", format!("{} not found", subject(resource, name))).about(resource, name)
    }

    /// No such path.
    pub(super) fn no_resource() -> Self {
        let mut failure = Self::plain(404, "NotFound", "the server could not find the requested resource");
        failure.details = Some(Map::new());
        failure
    }

    pub(super) fn already_exists(resource: Resource, name: &str) -> Self {
        Self::plain(409, "AlreadyExists", format!("{} already exists", subject(resource, name)))
            .about(resource, name)
    }

    pub(super) fn conflict(resource: Resource, name: &str, why: &str) -> Self {
        let message = format!("Operation cannot be fulfilled on {}: {why}", subject(resource, name));
        Self::plain(409, "Conflict", message).about(resource, name)
    }

    /// A write that is based on an old version.
    pub(super) fn stale(resource: Resource, name: &str) -> Self {
        Self::conflict(
            resource,
            name,
            "the object has been modified; please apply your changes to the latest version and try again",
        )
    }

    /// An object that makes no sense.
    pub(super) fn invalid(resource: Resource, name: &str, causes: &[Cause]) -> Self {
        Self::unprocessable(resource.kind.name(), resource.group, &resource.qualified_kind(), name, causes)
    }

    /// Query parameters of a list or a watch that make no sense, or that this server does not know.
    pub(super) fn invalid_options(causes: &[Cause]) -> Self {
        Self::unprocessable("ListOptions", "meta.k8s.io", "ListOptions.meta.k8s.io", "", causes)
    }

    /// A patch whose result is no object of its kind.
    pub(super) fn invalid_patch(result: &Value, why: &str) -> Self {
        Self::unprocessable("", "", "", "", &[Cause::invalid("patch", result, why)])
    }

    fn unprocessable(kind: &str, group: &str, qualified: &str, name: &str, causes: &[Cause]) -> Self {
        let mut texts: Vec<_> =
            causes.iter().map(|cause| format!("{}: {}", cause.field, cause.message)).collect();
        texts.dedup();
        let all = match texts.as_slice() {
            [only] => only.clone(),
            several => format!("[{}]", several.join(", ")),
        };
        let mut failure = Self::plain(422, "Invalid", format!("{qualified} \"{name}\" is invalid: {all}"));
        failure.detail_unless_empty("name", name);
        failure.detail_unless_empty("group", group);
        failure.detail_unless_empty("kind", kind);
        let causes = causes.iter().map(
            |Cause { reason, field, message }| json!({ "reason": reason, "message": message, "field": field }),
        );
        failure.detail("causes", causes.collect());
        failure
    }

    pub(super) fn bad_request(message: impl Into<String>) -> Self {
        Self::plain(400, "BadRequest", message)
    }

    pub(super) fn method_not_allowed() -> Self {
        let mut failure = Self::plain(
            405,
            "MethodNotAllowed",
            "the server does not allow this method on the requested resource",
        );
        failure.details = Some(Map::new());
        failure
    }

    pub(super) fn unsupported_media_type(accepted: &str) -> Self {
        let message = format!(
            "the body of the request was in an unknown format - accepted media types include: {accepted}"
        );
        Self::plain(415, "UnsupportedMediaType", message)
    }

    pub(super) fn too_large(limit: usize) -> Self {
        Self::plain(413, "RequestEntityTooLarge", format!("Request entity too large: limit is {limit}"))
    }

    /// A version that is no longer known; `oldest` is.
    pub(super) fn expired(version: u64, oldest: u64) -> Self {
        Self::plain(410, "Expired", format!("too old resource version: {version} ({oldest})"))
    }

    /// A page of a list whose version is no longer known.
    pub(super) fn expired_continue() -> Self {
        Self::plain(
            410,
            "Expired",
            "The provided continue parameter is too old to display a consistent list result. You can start a new \
             list without the continue parameter.",
        )
    }

    /// A version that is not there yet.
    pub(super) fn too_new(version: u64, current: u64) -> Self {
        let message = format!("Timeout: Too large resource version: {version}, current: {current}");
        let mut failure = Self::plain(504, "Timeout", message);
        let cause = json!({ "reason": "ResourceVersionTooLarge", "message": "Too large resource version" });
        failure.detail("causes", json!([cause]));
        failure.detail("retryAfterSeconds", json!(1));
        failure
    }

    /// What a server says whose own parts fail it, by HTTP code.
    pub(super) fn of_server(code: u16) -> Self {
        match code {
            429 => {
                let mut failure =
                    Self::plain(429, "TooManyRequests", "Too many requests, please try again later.");
                failure.detail("retryAfterSeconds", json!(1));
                failure
            }
            503 => {
                Self::plain(503, "ServiceUnavailable", "the server is currently unable to handle the request")
            }
            code => {
                let why = "etcdserver: leader changed";
                let mut failure =
                    Self::plain(code, "InternalError", format!("Internal error occurred: {why}"));
                failure.detail("causes", json!([{ "message": why }]));
                failure
            }
        }
    }

    fn plain(code: u16, reason: &'static str, message: impl Into<String>) -> Self {
        Self { code, reason, message: message.into(), details: None }
    }

    fn about(mut self, resource: Resource, name: &str) -> Self {
        self.detail_unless_empty("name", name);
        self.detail_unless_empty("group", resource.group);
        self.detail("kind", json!(resource.kind.plural()));
        self
    }

    fn detail(&mut self, key: &str, value: Value) {
        self.details.get_or_insert_default().insert(key.to_owned(), value);
    }

    fn detail_unless_empty(&mut self, key: &str, value: &str) {
        if !value.is_empty() {
            self.detail(key, json!(value));
        }
    }
}

/// `nodes "node-1"`, or `nodes` for all of them.
fn subject(resource: Resource, name: &str) -> String {
    let qualified = resource.qualified();
    if name.is_empty() { qualified } else { format!("{qualified} \"{name}\"") }
}
