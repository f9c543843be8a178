//! `podwirectl`: shows, explains and checks what podwire does on a node.

fn main() {}
