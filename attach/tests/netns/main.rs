//! Attachments made in network namespaces that the tests make for themselves. Needs root (CAP_SYS_ADMIN and
//! CAP_NET_ADMIN); without it the tests fail and say so.

#[cfg(test)]
mod conntrack;
#[cfg(test)]
mod extending;
#[cfg(test)]
mod lab;
#[cfg(test)]
mod shaping;
#[cfg(test)]
mod tuning;
