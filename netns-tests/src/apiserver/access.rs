//! Who may do what: bearer tokens, rules as in RBAC, and the policy that binds an agent to its own Node. PURE.

use std::collections::BTreeMap;

use super::failure::Failure;
use super::kind::Kind;
use super::request::Call;

/// The name of the policy that [`Account::bound_to`] stands for.
const POLICY: &str = "podwire-own-node";

/// What somebody may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    groups: Vec<String>,
    resources: Vec<String>,
    verbs: Vec<String>,
}

impl Rule {
    /// As in a ClusterRole; `*` is everything. The core's group is empty.
    pub fn new(group: &str, resources: &[&str], verbs: &[&str]) -> Self {
        let owned = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        Self { groups: vec![group.to_owned()], resources: owned(resources), verbs: owned(verbs) }
    }

    fn allows(&self, call: &Call) -> bool {
        let has = |words: &[String], word: &str| words.iter().any(|is| is == "*" || is == word);
        has(&self.groups, call.resource.group)
            && has(&self.resources, &call.wanted())
            && has(&self.verbs, call.verb.name())
    }
}

/// Somebody who may come in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    /// What messages call them.
    pub user: String,
    /// What they may do.
    pub rules: Vec<Rule>,
    /// The only Node that they may write, as by the ValidatingAdmissionPolicy of the manifests.
    pub bound_to: Option<String>,
}

impl Account {
    /// Who may do everything.
    pub fn admin() -> Self {
        Self {
            user: "kubernetes-admin".to_owned(),
            rules: vec![Rule::new("*", &["*"], &["*"])],
            bound_to: None,
        }
    }

    /// The agents' service account, with the rules of conf/kubernetes/podwire.yaml.
    pub fn agent() -> Self {
        Self {
            user: "system:serviceaccount:podwire-system:podwire".to_owned(),
            rules: vec![
                Rule::new("", &["nodes"], &["list", "watch", "patch"]),
                Rule::new("", &["nodes/status"], &["patch"]),
                Rule::new("events.k8s.io", &["events"], &["create", "patch"]),
            ],
            bound_to: None,
        }
    }

    /// The same, who may write one Node only.
    #[must_use]
    pub fn bound_to(mut self, node: &str) -> Self {
        self.bound_to = Some(node.to_owned());
        self
    }
}

/// Everybody who may come in, by their tokens.
pub(super) type Accounts = BTreeMap<String, Account>;

/// Who asks, from the header `Authorization`.
pub(super) fn authenticate(accounts: &Accounts, authorization: Option<&str>) -> Result<Account, Failure> {
    let Some(authorization) = authorization else {
        return Ok(Account { user: "system:anonymous".to_owned(), rules: Vec::new(), bound_to: None });
    };
    let token = authorization.strip_prefix("Bearer ").map(str::trim);
    token.and_then(|token| accounts.get(token)).cloned().ok_or_else(Failure::unauthorized)
}

/// Whether they may.
pub(super) fn authorise(account: &Account, call: &Call) -> Result<(), Failure> {
    if !account.rules.iter().any(|rule| rule.allows(call)) {
        return Err(Failure::forbidden(call, &account.user));
    }
    match &account.bound_to {
        Some(own) if call.resource.kind == Kind::Node && call.verb.is_write() && call.name != *own => {
            let why = format!("an agent may change its own Node only, {own}");
            Err(Failure::denied(call.resource, &call.name, POLICY, &why))
        }
        _ => Ok(()),
    }
}
