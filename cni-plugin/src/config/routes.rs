//! The routes of a configuration. A result's routes come from other plugins and are taken as they are; ours
//! are checked, because the kernel's own answer to a wrong one is "invalid argument".

use crate::protocol::json::Field;
use crate::protocol::{CniError, Route};

pub(super) fn read(field: &Field<'_>) -> Result<Vec<Route>, CniError> {
    field.list()?.iter().map(|route| read_route(&route.as_object()?)).collect()
}

fn read_route(field: &Field<'_>) -> Result<Route, CniError> {
    let route = Route::from_field(field)?;
    if route.dst.ip() != route.dst.network() {
        let network = format!("{}/{}", route.dst.network(), route.dst.prefix());
        return Err(field.at("dst").invalid(&format!("a network: did you mean {network}?")));
    }
    if route.gw.is_some_and(|gw| gw.is_ipv4() != route.dst.is_ipv4()) {
        return Err(field.at("gw").invalid(&format!("a gateway of the family of dst {}", route.dst)));
    }
    Ok(route)
}
