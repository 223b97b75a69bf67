//! `matapa trace`: one line for each packet.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use crate::api::client::{Client, EventLines};
use crate::api::trace::{Filter, TraceLine};
use crate::cli::args::Trace;
use crate::cli::exit::{ExitCode, Failure};
use crate::cli::monitor::stamp;
use crate::cli::output::print;
use crate::cli::table::clean;

/// Prints packets until there were enough, or the daemon goes away, or nobody reads them any more.
///
/// # Errors
/// When the filter makes no sense, or the daemon cannot be reached, refuses or goes away.
pub async fn trace(client: &Client, arguments: &Trace, steps: bool) -> Result<(), Failure> {
    // In one argument or in several.
    let filter = arguments.filter.join(" ");
    // What is wrong with it is bad usage; the daemon would say the same.
    Filter::parse(filter.split_whitespace()).map_err(|error| Failure::new(ExitCode::Usage, clean(&error)))?;
    let mut lines = client.trace(&filter, arguments.rate).await?;
    let ended = async {
        match arguments.duration {
            Some(duration) => tokio::time::sleep(duration).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        ended = print_lines(&mut lines, arguments, steps) => ended,
        () = ended => Ok(()),
    }
}

async fn print_lines(lines: &mut EventLines, arguments: &Trace, steps: bool) -> Result<(), Failure> {
    let mut seen = 0;
    while arguments.count.is_none_or(|count| seen < count) {
        let line = lines.next().await?;
        let parsed = if arguments.json { None } else { serde_json::from_str::<TraceLine>(&line).ok() };
        match parsed {
            Some(told) => print(&text(&told, steps))?,
            // What only a newer daemon says is shown as it came.
            None => print(&format!("{line}\n"))?,
        }
        seen += 1;
    }
    Ok(())
}

/// The packet in one line, and with `steps` its way in further ones.
fn text(line: &TraceLine, steps: bool) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    if line.missed > 0 {
        let _ = writeln!(text, "missed {} packets: they came faster than --rate or the reader", line.missed);
    }
    let _ = write!(text, "{} {}", micros(line.time), clean(&line.interface));
    if let Some(vlan) = line.vlan {
        let _ = write!(text, " vlan {vlan}");
    }
    let end = |address: Option<IpAddr>, port: Option<u16>| match (address, port) {
        (Some(address), Some(port)) => SocketAddr::new(address, port).to_string(),
        (Some(address), None) => address.to_string(),
        (None, _) => "?".to_owned(),
    };
    match &line.protocol {
        Some(protocol) => {
            let source = end(line.source, line.source_port);
            let destination = end(line.destination, line.destination_port);
            let _ = write!(text, " {} {source} > {destination}", clean(protocol));
        }
        None => text.push_str(" not IP"),
    }
    if !line.flags.is_empty() {
        let _ = write!(text, " [{}]", clean(&line.flags));
    }
    if line.fragment {
        text.push_str(" fragment");
    }
    let _ = write!(text, " {} bytes:", line.length);
    match (&line.service, &line.backend) {
        (Some(service), Some(backend)) => {
            let _ = write!(text, " {}/{}", clean(service), clean(backend));
        }
        (Some(service), None) => {
            let _ = write!(text, " {}", clean(service));
        }
        (None, _) => {}
    }
    let _ = writeln!(text, " {} ({})", clean(&line.action), clean(&line.reason));
    for step in line.steps.iter().filter(|_| steps) {
        let _ = writeln!(text, "    {}", clean(step));
    }
    text
}

/// Seconds since the epoch as RFC 3339 in UTC, with microseconds.
fn micros(seconds: f64) -> String {
    let below = Duration::try_from_secs_f64(seconds).unwrap_or_default().subsec_micros() % 1000;
    let stamp = stamp(seconds);
    format!("{}{below:03}Z", stamp.trim_end_matches('Z'))
}
