//! What the server has, and by which paths it is reached. PURE.

/// A kind of objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Nodes, cluster-wide, with a status of their own.
    Node,
    /// Pods.
    Pod,
    /// DaemonSets.
    DaemonSet,
    /// Events, served as core/v1 and as events.k8s.io/v1.
    Event,
    /// ConfigMaps.
    ConfigMap,
    /// Namespaces; none has to be there for objects in it.
    Namespace,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Node, Self::Pod, Self::DaemonSet, Self::Event, Self::ConfigMap, Self::Namespace];

    /// As in `kind: Node`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Node => "Node",
            Self::Pod => "Pod",
            Self::DaemonSet => "DaemonSet",
            Self::Event => "Event",
            Self::ConfigMap => "ConfigMap",
            Self::Namespace => "Namespace",
        }
    }

    /// As in paths.
    pub fn plural(self) -> &'static str {
        match self {
            Self::Node => "nodes",
            Self::Pod => "pods",
            Self::DaemonSet => "daemonsets",
            Self::Event => "events",
            Self::ConfigMap => "configmaps",
            Self::Namespace => "namespaces",
        }
    }

    /// The API group that its objects are kept in the form of; empty for the core.
    pub fn group(self) -> &'static str {
        if self == Self::DaemonSet { "apps" } else { "" }
    }

    /// Whether its objects are in namespaces.
    pub fn is_namespaced(self) -> bool {
        !matches!(self, Self::Node | Self::Namespace)
    }

    /// Whether `/status` is a resource of its own.
    pub fn has_status(self) -> bool {
        matches!(self, Self::Node | Self::Pod | Self::DaemonSet | Self::Namespace)
    }
}

/// A kind as one API group serves it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Resource {
    pub(super) kind: Kind,
    /// Empty for the core.
    pub(super) group: &'static str,
}

/// The groups besides the core, each in version v1.
pub(super) const GROUPS: [&str; 2] = ["apps", EVENTS];
/// The newer of the two groups that serve events.
pub(super) const EVENTS: &str = "events.k8s.io";

impl Resource {
    /// A kind in the group that it is kept in.
    pub(super) fn of(kind: Kind) -> Self {
        Self { kind, group: kind.group() }
    }

    /// What a group serves.
    pub(super) fn all_in(group: &'static str) -> impl Iterator<Item = Self> {
        Kind::ALL.into_iter().filter_map(move |kind| {
            let served = kind.group() == group || (group == EVENTS && kind == Kind::Event);
            served.then_some(Self { kind, group })
        })
    }

    /// As in `apiVersion: apps/v1`.
    pub(super) fn api_version(self) -> &'static str {
        match self.group {
            "apps" => "apps/v1",
            EVENTS => "events.k8s.io/v1",
            _ => "v1",
        }
    }

    /// As messages name it: `nodes`, `daemonsets.apps`.
    pub(super) fn qualified(self) -> String {
        qualify(self.kind.plural(), self.group)
    }

    /// As messages about invalid objects name it: `Node`, `DaemonSet.apps`.
    pub(super) fn qualified_kind(self) -> String {
        qualify(self.kind.name(), self.group)
    }
}

fn qualify(name: &str, group: &str) -> String {
    if group.is_empty() { name.to_owned() } else { format!("{name}.{group}") }
}
