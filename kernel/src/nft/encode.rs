//! Expressions as the kernel takes them.

use netlink_packet_core::DefaultNla;
use netlink_packet_netfilter::nftables::{
    Bitwise, Cmp, DataAttribute, ExpressionAttribute, Expressions, Immediate, ListAttribute, Lookup, Meta,
    MetaKey as MetaNumber, Operator, Payload, Register,
};

use crate::nfnetlink::emitted;

use super::batch::verdict_data;
use super::expr::{CmpOp, CtKey, Direction, Expr, FibResult, Header, MetaKey, NatKind, Reg, Then};

/// NFT_REG32_00
const FIRST_REGISTER: u32 = 8;

impl Reg {
    fn number(self) -> u32 {
        FIRST_REGISTER + u32::from(self.0)
    }

    fn register(self) -> Register {
        self.number().into()
    }

    /// Of the kernel's number: registers that start at a multiple of 16 bytes have another one.
    pub(super) fn of(number: u32) -> Option<Self> {
        let index = match number {
            1..=4 => (number - 1) * 4,
            8..=23 => number - FIRST_REGISTER,
            _ => return None,
        };
        u8::try_from(index).ok().map(Self)
    }
}

pub(super) fn expression(expression: &Expr) -> ListAttribute<ExpressionAttribute> {
    use DataAttribute::Value;
    let expressions = match expression {
        Expr::Meta { key, to } => Expressions::Meta(vec![
            Meta::Key(MetaNumber::from(key.number())),
            Meta::DestinationRegister(to.register()),
        ]),
        Expr::SetMeta { key, from } => Expressions::Meta(vec![
            Meta::Key(MetaNumber::from(key.number())),
            Meta::SourceRegister(from.register()),
        ]),
        Expr::Payload { base, offset, len, to } => Expressions::Payload(vec![
            Payload::DestinationRegister(to.register()),
            Payload::Base(base.number()),
            Payload::Offset(*offset),
            Payload::Len(*len),
        ]),
        Expr::Cmp { reg, op, value } => Expressions::Cmp(vec![
            Cmp::SourceRegister(reg.register()),
            Cmp::Op(Operator::from(op.number())),
            Cmp::Data(Value(value.clone())),
        ]),
        Expr::Bitwise { from, to, mask, xor } => Expressions::Bitwise(vec![
            Bitwise::SourceRegister(from.register()),
            Bitwise::DestinationRegister(to.register()),
            Bitwise::Length(u32::try_from(mask.len()).unwrap_or(u32::MAX)),
            Bitwise::Mask(Value(mask.clone())),
            Bitwise::Xor(Value(xor.clone())),
        ]),
        Expr::Lookup { set, set_id, reg, then } => {
            let mut attributes = vec![Lookup::Set(set.clone()), Lookup::SourceRegister(reg.register())];
            if *set_id != 0 {
                attributes.push(Lookup::SetId(*set_id));
            }
            match then {
                Then::IfThere => {}
                // NFT_LOOKUP_F_INV
                Then::IfMissing => attributes.push(Lookup::Flags(1)),
                Then::Load(to) => attributes.push(Lookup::DestinationRegister(to.register())),
                Then::Verdict => attributes.push(Lookup::DestinationRegister(Register::Verdict)),
            }
            Expressions::Lookup(attributes)
        }
        Expr::Verdict(verdict) => Expressions::Immediate(vec![
            Immediate::DestinationRegister(Register::Verdict),
            Immediate::Data(verdict_data(verdict)),
        ]),
        Expr::Immediate { to, value } => Expressions::Immediate(vec![
            Immediate::DestinationRegister(to.register()),
            Immediate::Data(Value(value.clone())),
        ]),
        other => untyped(other),
    };
    expressions.into()
}

/// Those for which the library has no type.
fn untyped(expression: &Expr) -> Expressions {
    let (name, attributes) = match expression {
        Expr::Range { reg, invert, from, to } => (
            "range",
            vec![
                number(1, reg.number()),
                number(2, u32::from(*invert)),
                nested(3, &DataAttribute::Value(from.clone())),
                nested(4, &DataAttribute::Value(to.clone())),
            ],
        ),
        Expr::Byteorder { from, to, to_network, len, size } => (
            "byteorder",
            vec![
                number(1, from.number()),
                number(2, to.number()),
                number(3, u32::from(*to_network)),
                number(4, *len),
                number(5, *size),
            ],
        ),
        Expr::Ct { key, direction, to } => {
            let mut attributes = vec![number(1, to.number()), number(2, key.number())];
            attributes.extend(direction.map(|direction| DefaultNla::new(3, vec![direction.number()])));
            ("ct", attributes)
        }
        Expr::Fib { flags, result, to } => {
            ("fib", vec![number(1, to.number()), number(2, result.number()), number(3, *flags)])
        }
        Expr::Nat { kind, family, address, port, flags } => {
            let mut attributes = vec![number(1, kind.number()), number(2, family.number().into())];
            attributes.extend(address.map(|register| number(3, register.number())));
            attributes.extend(port.map(|register| number(5, register.number())));
            attributes.extend(flag_attribute(7, *flags));
            ("nat", attributes)
        }
        Expr::Masquerade { flags } => ("masq", flag_attribute(1, *flags).into_iter().collect()),
        Expr::Counter => ("counter", Vec::new()),
        Expr::Notrack => ("notrack", Vec::new()),
        Expr::Reject { kind, code } => ("reject", vec![number(1, *kind), DefaultNla::new(2, vec![*code])]),
        Expr::Match { name, revision, info } => ("match", xtables(name, *revision, info)),
        Expr::Target { name, revision, info } => ("target", xtables(name, *revision, info)),
        Expr::Other { name, attributes } => {
            let attributes = attributes.iter().map(|(kind, value)| DefaultNla::new(*kind, value.clone()));
            (name.as_str(), attributes.collect())
        }
        // Typed above.
        Expr::Meta { .. }
        | Expr::SetMeta { .. }
        | Expr::Payload { .. }
        | Expr::Cmp { .. }
        | Expr::Bitwise { .. }
        | Expr::Lookup { .. }
        | Expr::Verdict(_)
        | Expr::Immediate { .. } => ("", Vec::new()),
    };
    Expressions::Other { expression_type: name.to_owned(), attributes }
}

fn number(kind: u16, value: u32) -> DefaultNla {
    DefaultNla::new(kind, value.to_be_bytes().to_vec())
}

fn nested(kind: u16, data: &DataAttribute) -> DefaultNla {
    DefaultNla::new(kind | netlink_packet_core::NLA_F_NESTED, emitted(data))
}

fn flag_attribute(kind: u16, flags: u32) -> Option<DefaultNla> {
    (flags != 0).then(|| number(kind, flags))
}

fn xtables(name: &str, revision: u32, info: &[u8]) -> Vec<DefaultNla> {
    let mut name = name.as_bytes().to_vec();
    name.push(0);
    let mut info = info.to_vec();
    // XT_ALIGN
    info.resize(info.len().next_multiple_of(8), 0);
    vec![DefaultNla::new(1, name), number(2, revision), DefaultNla::new(3, info)]
}

/// Names the numbers of an enumeration once for both directions.
macro_rules! numbers {
    ($type:ident, $number:ty, { $($variant:ident = $value:literal),* $(,)? } $(, $other:ident)?) => {
        impl $type {
            pub(super) fn number(self) -> $number {
                match self {
                    $(Self::$variant => $value,)*
                    $(Self::$other(number) => number,)?
                }
            }
        }

        numbers!(@of $type, $number, { $($variant = $value),* } $(, $other)?);
    };
    (@of $type:ident, $number:ty, { $($variant:ident = $value:literal),* }, $other:ident) => {
        impl $type {
            pub(super) fn of(number: $number) -> Option<Self> {
                Some(match number {
                    $($value => Self::$variant,)*
                    number => Self::$other(number),
                })
            }
        }
    };
    (@of $type:ident, $number:ty, { $($variant:ident = $value:literal),* }) => {
        impl $type {
            pub(super) fn of(number: $number) -> Option<Self> {
                Some(match number {
                    $($value => Self::$variant,)*
                    _ => return None,
                })
            }
        }
    };
}

numbers!(CmpOp, u32, { Eq = 0, Ne = 1, Lt = 2, Le = 3, Gt = 4, Ge = 5 });
numbers!(Header, u32, { Link = 0, Network = 1, Transport = 2 });
numbers!(Direction, u8, { Original = 0, Reply = 1 });
numbers!(FibResult, u32, { Oif = 1, Oifname = 2, AddressType = 3 });
numbers!(NatKind, u32, { Source = 0, Destination = 1 });
numbers!(CtKey, u32, {
    State = 0, Direction = 1, Status = 2, Mark = 3, L3proto = 7, Protocol = 10, ProtoSource = 11,
    ProtoDestination = 12, Source4 = 19, Destination4 = 20, Source6 = 21, Destination6 = 22,
}, Other);

numbers!(MetaKey, u32, {
    Protocol = 1, Mark = 3, Iif = 4, Oif = 5, Iifname = 6, Oifname = 7, Iiftype = 8, Nfproto = 15, L4proto = 16,
    Pkttype = 19, Iifkind = 26, Oifkind = 27,
}, Other);
