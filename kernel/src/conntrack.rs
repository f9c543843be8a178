//! Connection tracking: which connections the kernel knows, and making it forget one.
