//! A rule as people read it: not complete, but to be recognised in what `nft list ruleset` prints.

use std::fmt::Write;
use std::net::IpAddr;

use podwire_kernel::nft::{CmpOp, Expr, Header, MetaKey, Rule, Then, Verdict};

/// The rule's text.
pub(super) fn rule(rule: &Rule) -> String {
    let mut words: Vec<String> = Vec::new();
    let mut loaded: Option<String> = None;
    let mut kind = Kind::Bytes;
    for expression in &rule.expressions {
        match expression {
            Expr::Meta { key, .. } => (loaded, kind) = (Some(meta(*key)), meta_kind(*key)),
            Expr::Payload { base, offset, len, .. } => {
                (loaded, kind) = (Some(payload(*base, *offset, *len)), Kind::of_length(*len));
            }
            Expr::Ct { key, .. } => {
                (loaded, kind) = (Some(format!("ct {key:?}").to_lowercase()), Kind::Number)
            }
            Expr::Fib { .. } => (loaded, kind) = (Some("fib".to_owned()), Kind::Number),
            Expr::Bitwise { .. } | Expr::Byteorder { .. } | Expr::Immediate { .. } | Expr::Counter => {}
            Expr::Cmp { op, value, .. } => {
                let what = loaded.clone().unwrap_or_else(|| "…".to_owned());
                words.push(format!("{what} {}{}", operator(*op), kind.text(value)));
            }
            Expr::Range { from, to, invert, .. } => {
                let what = loaded.clone().unwrap_or_else(|| "…".to_owned());
                let not = if *invert { "!= " } else { "" };
                words.push(format!("{what} {not}{}-{}", kind.text(from), kind.text(to)));
            }
            Expr::Lookup { set, then, .. } => {
                let what = loaded.clone().unwrap_or_else(|| "…".to_owned());
                let (verb, not) = match then {
                    Then::IfMissing => ("", "!= "),
                    Then::Verdict => ("vmap ", ""),
                    Then::Load(_) => ("map ", ""),
                    Then::IfThere => ("", ""),
                };
                words.push(format!("{what} {verb}{not}@{set}"));
            }
            Expr::Verdict(verdict) => words.push(text(verdict)),
            Expr::Reject { .. } => words.push("reject".to_owned()),
            Expr::Match { name, .. } => words.push(format!("xt match {name}")),
            Expr::Target { name, .. } => words.push(format!("xt target {name}")),
            Expr::Other { name, .. } => words.push(name.clone()),
            _ => {}
        }
    }
    let mut all = words.join(" ");
    if let Some(comment) = &rule.comment {
        let _ = write!(all, " comment {comment:?}");
    }
    all
}

/// How a value is written.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Bytes,
    Name,
    Number,
    Address,
    Port,
}

impl Kind {
    fn of_length(len: u32) -> Self {
        match len {
            2 => Self::Port,
            4 | 16 => Self::Address,
            _ => Self::Bytes,
        }
    }

    fn text(self, value: &[u8]) -> String {
        let number = |bytes: &[u8]| {
            let bytes: Option<[u8; 4]> = bytes.try_into().ok();
            bytes.map_or_else(|| hex(value), |bytes| u32::from_ne_bytes(bytes).to_string())
        };
        match (self, value.len()) {
            (Self::Name, _) => {
                let name: Vec<u8> = value.iter().copied().take_while(|byte| *byte != 0).collect();
                format!("{:?}", String::from_utf8_lossy(&name))
            }
            (Self::Number, 1) => value.first().map_or_else(String::new, u8::to_string),
            (Self::Number, _) => number(value),
            (Self::Port, 2) => {
                value.iter().fold(0_u32, |port, byte| port << 8 | u32::from(*byte)).to_string()
            }
            (Self::Address, 4) => <[u8; 4]>::try_from(value)
                .map_or_else(|_| hex(value), |bytes| IpAddr::from(bytes).to_string()),
            (Self::Address, 16) => <[u8; 16]>::try_from(value)
                .map_or_else(|_| hex(value), |bytes| IpAddr::from(bytes).to_string()),
            _ => hex(value),
        }
    }
}

fn hex(value: &[u8]) -> String {
    value.iter().fold("0x".to_owned(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn meta(key: MetaKey) -> String {
    match key {
        MetaKey::Other(number) => format!("meta {number}"),
        key => format!("{key:?}").to_lowercase(),
    }
}

fn meta_kind(key: MetaKey) -> Kind {
    match key {
        MetaKey::Iifname | MetaKey::Oifname | MetaKey::Iifkind | MetaKey::Oifkind => Kind::Name,
        MetaKey::Protocol => Kind::Bytes,
        _ => Kind::Number,
    }
}

fn payload(base: Header, offset: u32, len: u32) -> String {
    match (base, offset, len) {
        (Header::Network, 12, 4) => "ip saddr".to_owned(),
        (Header::Network, 16, 4) => "ip daddr".to_owned(),
        (Header::Network, 8, 16) => "ip6 saddr".to_owned(),
        (Header::Network, 24, 16) => "ip6 daddr".to_owned(),
        (Header::Transport, 0, 2) => "th sport".to_owned(),
        (Header::Transport, 2, 2) => "th dport".to_owned(),
        (base, offset, len) => {
            let bits = |bytes: u32| u64::from(bytes) * 8;
            format!("@{},{},{}", format!("{base:?}").to_lowercase(), bits(offset), bits(len))
        }
    }
}

fn operator(op: CmpOp) -> &'static str {
    match op {
        CmpOp::Eq => "",
        CmpOp::Ne => "!= ",
        CmpOp::Lt => "< ",
        CmpOp::Le => "<= ",
        CmpOp::Gt => "> ",
        CmpOp::Ge => ">= ",
    }
}

fn text(verdict: &Verdict) -> String {
    match verdict {
        Verdict::Accept => "accept".to_owned(),
        Verdict::Drop => "drop".to_owned(),
        Verdict::Continue => "continue".to_owned(),
        Verdict::Return => "return".to_owned(),
        Verdict::Jump(chain) => format!("jump {chain}"),
        Verdict::Goto(chain) => format!("goto {chain}"),
        Verdict::Other(code) => format!("verdict {code}"),
    }
}
