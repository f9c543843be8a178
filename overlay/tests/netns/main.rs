//! The overlay's thread against the kernel: one node in a network namespace of the test's own, other nodes as records.
//! Needs root, `ip`, `bridge` and `nft`; without them the tests fail and say so.

#[cfg(test)]
mod bystanders;
#[cfg(test)]
mod churn;
#[cfg(test)]
mod faults;
#[cfg(test)]
mod filter;
#[cfg(test)]
mod flannel;
#[cfg(test)]
mod lab;
#[cfg(test)]
mod life;
#[cfg(test)]
mod scale;
#[cfg(test)]
mod underlay;
