//! `matapa explain`: what would happen to a packet, in sentences.

use std::fmt::Write as _;
use std::net::SocketAddr;

use crate::api::client::Client;
use crate::api::explain::{
    Choice, ExplainedBackend, ExplainedHop, ExplainedPacket, Explanation, FLAGS, Question, Reached,
};
use crate::api::types::AdminState;
use crate::cli::args::Explain;
use crate::cli::exit::{ExitCode, Failure};
use crate::cli::output::print;
use crate::cli::table::{admin, clean, health};

/// Asks, and prints the answer.
///
/// # Errors
/// When the packet makes no sense, or the daemon cannot be reached or refuses.
pub async fn explain(client: &Client, arguments: &Explain) -> Result<(), Failure> {
    let flags = flags(arguments);
    let (interface, vlan) = (arguments.interface.as_deref(), arguments.vlan.as_deref());
    let (source, destination) = (arguments.source.as_str(), arguments.destination.as_str());
    // What is wrong with it is bad usage; the daemon would say the same.
    Question::parse(source, destination, flags.as_deref(), interface, vlan)
        .map_err(|error| Failure::new(ExitCode::Usage, clean(&error)))?;
    let mut parameters = vec![("source", source), ("destination", destination)];
    let optional = [("flags", flags.as_deref()), ("interface", interface), ("vlan", vlan)];
    parameters.extend(optional.into_iter().filter_map(|(name, value)| Some((name, value?))));
    if arguments.json {
        let bytes = client.explain_json(&parameters).await?;
        return print(&format!("{}\n", String::from_utf8_lossy(&bytes).trim_end()));
    }
    print(&sentences(&client.explain(&parameters).await?))
}

fn flags(arguments: &Explain) -> Option<String> {
    let given = [arguments.syn, arguments.ack, arguments.fin, arguments.rst];
    let names: Vec<_> =
        FLAGS.iter().zip(given).filter(|(_, given)| *given).map(|((name, _), _)| *name).collect();
    if names.is_empty() { arguments.flags.clone() } else { Some(names.join(",")) }
}

/// The way of the packet, one sentence for each step, and how it ends.
pub fn sentences(explanation: &Explanation) -> String {
    let mut lines = vec![packet(&explanation.packet)];
    let mut say = |text: String| lines.push(format!("  {text}"));
    if let Some(listener) = &explanation.listener {
        say(format!("It is for the service {}, which listens on {}.", listener.service, listener.listen));
    }
    if let (true, Some(backend)) = (explanation.from_backend, &explanation.backend) {
        say(format!("It comes from {}/{}, {}.", backend.service, backend.name, of(backend)));
    }
    if let Some(flow) = &explanation.flow {
        say(match (flow.known, explanation.from_backend) {
            (false, false) => "Its flow is not known: a new one would begin.".to_owned(),
            (false, true) => "It belongs to no flow that is known.".to_owned(),
            (true, _) => format!(
                "Its flow is known: {}, with {}{}.",
                flow.state.as_deref().unwrap_or("in an unknown state"),
                flow.backend.as_deref().unwrap_or("an unknown backend"),
                flow.idle_seconds.map(|idle| format!(", idle for {idle} s")).unwrap_or_default()
            ),
        });
    }
    if !explanation.from_backend {
        choice(explanation).into_iter().for_each(&mut say);
        if let Some(backend) = &explanation.backend {
            say(format!("{} is {}.", backend.name, of(backend)));
        }
    }
    if let Some(mode) = &explanation.mode {
        let instead = explanation
            .stands_for_client
            .map(|address| format!(", with {address} in the client's place"))
            .unwrap_or_default();
        if !explanation.from_backend {
            say(format!("It goes there by {mode}{instead}."));
        }
    }
    if let Some(hop) = &explanation.next_hop {
        say(next_hop(hop));
    }
    let mut text = clean_lines(&lines);
    // Writing to a String cannot fail.
    let _ = writeln!(
        text,
        "Verdict: {} ({}). {}",
        clean(action(&explanation.action)),
        clean(&explanation.reason),
        clean(&explanation.meaning)
    );
    text
}

fn clean_lines(lines: &[String]) -> String {
    lines.iter().map(|line| format!("{}\n", clean(line))).collect()
}

fn packet(packet: &ExplainedPacket) -> String {
    let end = |address, port: Option<u16>| match port {
        Some(port) => SocketAddr::new(address, port).to_string(),
        None => address.to_string(),
    };
    let what = match packet.protocol.as_str() {
        "tcp" if packet.flags.is_empty() => "TCP segment without flags".to_owned(),
        "tcp" => format!("TCP {}", packet.flags.join("+").to_uppercase()),
        "udp" => "UDP datagram".to_owned(),
        "icmp" => "ping".to_owned(),
        "icmp6" => "ping (ICMPv6)".to_owned(),
        number => format!("packet of protocol {number}"),
    };
    let tags = match packet.vlans.as_slice() {
        [] => String::new(),
        [one] => format!(", VLAN {one}"),
        several => {
            let numbers: Vec<String> = several.iter().map(ToString::to_string).collect();
            format!(", VLANs {}", numbers.join(" and "))
        }
    };
    format!(
        "A {what} from {} to {}, in on {}{tags}:",
        end(packet.source, packet.source_port),
        end(packet.destination, packet.destination_port),
        packet.interface
    )
}

fn choice(explanation: &Explanation) -> Option<String> {
    let name = explanation.backend.as_ref().map_or("nobody", |backend| &backend.name);
    let scheduler = explanation.listener.as_ref().map_or("", |listener| &listener.scheduler);
    Some(match explanation.choice.as_ref()? {
        Choice::Scheduler { slot, slots } => match scheduler {
            "round-robin" => format!("The next turn (round-robin) is {name}'s, on the CPU that was asked."),
            "least-connections" => {
                format!("{name} has the fewest connections for its weight (least-connections).")
            }
            "random" => format!("The backend is drawn at random, this time {name}: slot {slot} of {slots}."),
            other => format!("The scheduler ({other}) picks slot {slot} of {slots}, which holds {name}."),
        },
        Choice::Sticky => format!("Its client is remembered to be with {name}."),
        Choice::SecondChance { silent } => {
            format!("{silent} has not answered, so {name} gets the next attempt.")
        }
        Choice::Room { full } => {
            format!(
                "{full}, which the scheduler picked, has as many connections as it may, so {name} gets it."
            )
        }
        Choice::Fragment => format!("It follows the first fragment of its datagram to {name}."),
    })
}

/// Address and state.
fn of(backend: &ExplainedBackend) -> String {
    let address = backend.port.map_or_else(
        || backend.address.to_string(),
        |port| SocketAddr::new(backend.address, port).to_string(),
    );
    let mut text = format!("{address}: {}", health(backend.health).0);
    if backend.admin != AdminState::Enabled {
        let _ = write!(text, ", {}", admin(backend.admin).0);
    }
    if backend.suspect {
        text.push_str(", suspected to be silent");
    }
    text
}

fn next_hop(hop: &ExplainedHop) -> String {
    let interface = hop.interface.as_deref().unwrap_or("an interface");
    match hop.reach {
        Reached::Known => match &hop.mac {
            Some(mac) => format!("The next hop is {mac} on {interface}."),
            None => format!("The next hop is on {interface}."),
        },
        Reached::NeighbourUnknown => {
            "The next hop's MAC address is not known yet: the kernel asks for it and sends the packet."
                .to_owned()
        }
        Reached::Elsewhere => {
            format!("The way leads out of {interface}, which has no program: the kernel sends the packet.")
        }
        Reached::TooBig => "The packet is larger than the way takes.".to_owned(),
        Reached::NotForwarded => {
            "There is no way: no route leads there, or to this machine itself.".to_owned()
        }
        Reached::Refused => "There is no way: a route forbids it.".to_owned(),
        Reached::ForwardingDisabled => {
            "There is no way: forwarding is switched off on the interface that the packet comes in on."
                .to_owned()
        }
        Reached::Unsupported => {
            "There is no way: the route needs an encapsulation that XDP cannot do.".to_owned()
        }
    }
}

fn action(name: &str) -> &str {
    match name {
        "pass" => "to the kernel",
        "drop" => "dropped",
        "transmit" => "sent, out of the same interface",
        "redirect" => "sent",
        other => other,
    }
}
