//! Addresses and routes in JSON, as configurations and results write them.
