//! Which way packets go.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures_util::TryStreamExt as _;
use rtnetlink::RouteMessageBuilder;
use rtnetlink::packet_route::route::{RouteAttribute, RouteMessage};

/// Asks the kernel for the route to an address.
#[must_use]
pub fn question(address: IpAddr) -> RouteMessage {
    match address {
        IpAddr::V4(v4) => RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(v4, 32).build(),
        IpAddr::V6(v6) => RouteMessageBuilder::<Ipv6Addr>::new().destination_prefix(v6, 128).build(),
    }
}

/// Index of the interface by which this machine sends to an address; `None` when it does not.
///
/// # Errors
/// When there is no rtnetlink.
pub async fn towards(address: IpAddr) -> io::Result<Option<u32>> {
    let (connection, handle, _) = rtnetlink::new_connection()?;
    let connection = tokio::spawn(connection);
    let route = handle.route().get(question(address)).execute().try_next().await;
    connection.abort();
    // An error is the kernel's way of saying that there is none.
    let attributes = route.ok().flatten().map(|route| route.attributes).unwrap_or_default();
    Ok(attributes.into_iter().find_map(|attribute| match attribute {
        RouteAttribute::Oif(index) => Some(index),
        _ => None,
    }))
}
