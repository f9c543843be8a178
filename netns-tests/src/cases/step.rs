//! What a row does: calls, scripts, and looks at what they left.

use serde_json::{Value, json};

use super::expect::{Expect, Want, error, ok};
use super::scene::Scene;

/// One step of a row.
pub enum Step {
    /// A call of the plugin.
    Call(Box<Call>),
    /// A shell script on the node that must succeed: what another program would do.
    Script(&'static str),
    /// A shell script on the node whose output is looked at.
    Look(Look),
    /// A server that runs until the row ends: the place, and what it listens on.
    Serve(&'static str, &'static str),
    /// A client that asks a server whom it sees.
    Reach(Reach),
    /// Anything else.
    Act(Act),
}

/// What a client hears of a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// The server of that place answers, and sees the client under one of these addresses (separated by `|`; `any`).
    As(&'static str, &'static str),
    /// Nobody answers.
    Nothing,
}

/// A client that asks a server whom it sees.
pub struct Reach {
    pub(super) from: &'static str,
    pub(super) to: &'static str,
    pub(super) seen: Seen,
    pub(super) reference: Option<Seen>,
}

type Deed = dyn Fn(&Scene) -> crate::Result<()> + Send + Sync;

/// Something done with a scene, by name.
pub struct Act {
    pub(super) name: &'static str,
    pub(super) act: Box<Deed>,
    pub(super) podwire_alone: bool,
}

impl Step {
    pub(super) fn is_overridden(&self) -> bool {
        match self {
            Self::Call(call) => call.reference.is_some(),
            Self::Script(_) | Self::Serve(..) => false,
            Self::Look(look) => look.reference.is_some(),
            Self::Reach(reach) => reach.reference.is_some(),
            Self::Act(act) => act.podwire_alone,
        }
    }
}

/// A script and what it must print. `ip -n <pod>` looks into a pod; `{port:<pod>}` stands for the host's end of that
/// pod's eth0.
pub struct Look {
    pub(super) script: &'static str,
    pub(super) text: Text,
    pub(super) reference: Option<Text>,
}

/// What a script must print. White space of any length is one blank, at both ends none.
#[derive(Debug, Clone, Copy)]
pub enum Text {
    /// Exactly this.
    Is(&'static str),
    /// This among other things.
    Has(&'static str),
    /// Anything but this.
    Lacks(&'static str),
}

/// A call of the plugin. Unless said otherwise it is made as a runtime makes it: all CNI variables set, the
/// container id and the netns those of the pod, eth0, and after an ADD its result as `prevResult`.
pub struct Call {
    pub(super) verb: &'static str,
    pub(super) pod: Option<&'static str>,
    pub(super) container: Option<&'static str>,
    pub(super) ifname: &'static str,
    pub(super) env: Vec<(&'static str, Option<&'static str>)>,
    pub(super) patch: Value,
    pub(super) stdin: Stdin,
    pub(super) previous: Previous,
    pub(super) from: &'static str,
    pub(super) expect: Expect,
    pub(super) reference: Option<Expect>,
}

/// What a call reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stdin {
    Config,
    Raw(&'static str),
    /// A directory, which cannot be read.
    Directory,
    /// Nothing, from /dev/null.
    Null,
}

/// Which `prevResult` a call carries.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Previous {
    /// That of the attachment's ADD, if there was one.
    Kept,
    None,
    Is(Value),
}

fn call(verb: &'static str, pod: Option<&'static str>) -> Call {
    Call {
        verb,
        pod,
        container: None,
        ifname: "eth0",
        env: Vec::new(),
        patch: Value::Null,
        stdin: Stdin::Config,
        previous: Previous::Kept,
        from: "0.1.0",
        expect: ok(&[]),
        reference: None,
    }
}

/// ADD of a pod, made with the first call that names it.
pub fn add(pod: &'static str) -> Call {
    let mut add = call("ADD", Some(pod));
    add.previous = Previous::None;
    add
}

/// DEL of a pod.
pub fn del(pod: &'static str) -> Call {
    call("DEL", Some(pod))
}

/// CHECK of a pod, left out for versions without CHECK.
pub fn check(pod: &'static str) -> Call {
    let mut check = call("CHECK", Some(pod));
    check.from = "0.4.0";
    check
}

/// GC. `valid` is `cni.dev/valid-attachments`.
pub fn gc(valid: Value) -> Call {
    let mut gc = call("GC", None);
    gc.patch = json!({ "cni.dev/valid-attachments": valid });
    gc
}

/// STATUS.
pub fn status() -> Call {
    call("STATUS", None)
}

/// Any verb of no pod: CNI_CONTAINERID, CNI_NETNS and CNI_IFNAME are not set.
pub fn verb(verb: &'static str) -> Call {
    call(verb, None)
}

/// A script on the node that must succeed.
pub fn script(script: &'static str) -> Step {
    Step::Script(script)
}

/// A script on the node and what it must print.
pub fn look(script: &'static str, text: Text) -> Look {
    Look { script, text, reference: None }
}

impl Look {
    /// What it prints after the reference's calls.
    pub fn reference(mut self, text: Text) -> Self {
        self.reference = Some(text);
        self
    }
}

/// A server in a place, on `tcp [::]:80` for one. It says who it is and whom it sees, and runs until the row ends.
pub fn serve(place: &'static str, on: &'static str) -> Step {
    Step::Serve(place, on)
}

/// A client in a place, with `@` and its source address if that matters, reaches a server on `tcp 192.0.2.1:80`, for
/// one: the server of the place `server`, which sees it as `peer`.
pub fn reach(from: &'static str, to: &'static str, server: &'static str, peer: &'static str) -> Reach {
    Reach { from, to, seen: Seen::As(server, peer), reference: None }
}

/// A client hears nothing.
pub fn unreachable(from: &'static str, to: &'static str) -> Reach {
    Reach { from, to, seen: Seen::Nothing, reference: None }
}

/// Anything else, by name.
pub fn act(name: &'static str, act: impl Fn(&Scene) -> crate::Result<()> + Send + Sync + 'static) -> Act {
    Act { name, act: Box::new(act), podwire_alone: false }
}

impl Reach {
    /// What comes of it where the reference is called.
    pub fn reference(mut self, seen: Seen) -> Self {
        self.reference = Some(seen);
        self
    }
}

impl Act {
    /// Left out where the reference is called: it cannot pass.
    pub fn podwire_alone(mut self) -> Self {
        self.podwire_alone = true;
        self
    }
}

impl From<Reach> for Step {
    fn from(reach: Reach) -> Self {
        Self::Reach(reach)
    }
}

impl From<Act> for Step {
    fn from(act: Act) -> Self {
        Self::Act(act)
    }
}

impl From<Look> for Step {
    fn from(look: Look) -> Self {
        Self::Look(look)
    }
}

impl From<Call> for Step {
    fn from(call: Call) -> Self {
        Self::Call(Box::new(call))
    }
}

impl Call {
    /// CNI_CONTAINERID, where it is not the pod's name.
    pub fn container(mut self, container: &'static str) -> Self {
        self.container = Some(container);
        self
    }

    /// CNI_IFNAME.
    pub fn ifname(mut self, ifname: &'static str) -> Self {
        self.ifname = ifname;
        self
    }

    /// A variable of the environment.
    pub fn env(mut self, name: &'static str, value: &'static str) -> Self {
        self.env.push((name, Some(value)));
        self
    }

    /// CNI_ARGS.
    pub fn args(self, args: &'static str) -> Self {
        self.env("CNI_ARGS", args)
    }

    /// A variable that is not set.
    pub fn without(mut self, name: &'static str) -> Self {
        self.env.push((name, None));
        self
    }

    /// Keys of the configuration that this call has otherwise; objects are merged, `null` removes a key.
    pub fn config(mut self, patch: Value) -> Self {
        self.patch = patch;
        self
    }

    /// Standard input as it is.
    pub fn raw(mut self, stdin: &'static str) -> Self {
        self.stdin = Stdin::Raw(stdin);
        self
    }

    /// Standard input that cannot be read.
    pub fn unreadable(mut self) -> Self {
        self.stdin = Stdin::Directory;
        self
    }

    /// No standard input.
    pub fn no_stdin(mut self) -> Self {
        self.stdin = Stdin::Null;
        self
    }

    /// No `prevResult`.
    pub fn forgotten(mut self) -> Self {
        self.previous = Previous::None;
        self
    }

    /// This `prevResult`.
    pub fn previous(mut self, result: Value) -> Self {
        self.previous = Previous::Is(result);
        self
    }

    /// Made also for versions without CHECK.
    pub fn always(mut self) -> Self {
        self.from = "0.1.0";
        self
    }

    /// It succeeds, and its result has all these.
    pub fn gives(mut self, wants: &[Want]) -> Self {
        self.expect = ok(wants);
        self
    }

    /// It succeeds with exactly these addresses, in this order.
    pub fn addresses(self, addresses: &'static [&'static str]) -> Self {
        self.gives(&[Want::Addresses(addresses)])
    }

    /// It fails with this CNI code and a message that has all these parts, whatever their case.
    pub fn fails(mut self, code: u64, says: &[&'static str]) -> Self {
        self.expect = error(code, says);
        self
    }

    /// What comes of it.
    pub fn comes_to(mut self, expect: Expect) -> Self {
        self.expect = expect;
        self
    }

    /// What comes of it where the reference is called.
    pub fn reference(mut self, expect: Expect) -> Self {
        self.reference = Some(expect);
        self
    }
}
