//! `matapa doctor`: each thing that keeps packets from arriving is provoked, found, and mended by the command that the
//! doctor names.

use std::time::Duration;

use lb_lab::topology::VIP_V4;
use lb_lab::traffic::EchoServer;
use lb_lab::{Netns, Shape, wait_until};
use serde::Deserialize;

use crate::support::{ECHO, NO_CHECK, Rig, TCP_CHECK, assert_prompt, echo_config, interfaces, service, vips};

const LIMIT: Duration = Duration::from_secs(10);

#[derive(Debug, Deserialize)]
struct Finding {
    severity: String,
    check: String,
    subject: String,
    message: String,
    mend: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Report {
    ok: bool,
    findings: Vec<Finding>,
}

impl Report {
    fn wrong(&self) -> impl Iterator<Item = &Finding> {
        self.findings.iter().filter(|finding| finding.severity != "ok")
    }

    /// The finding of this check about this subject, and how bad it is.
    fn find(&self, severity: &str, check: &str, subject: &str) -> &Finding {
        let found = self.wrong().find(|finding| finding.check == check && finding.subject == subject);
        let found = found.unwrap_or_else(|| panic!("no finding {check} {subject} in {:#?}", self.findings));
        assert_eq!(found.severity, severity, "{found:?}");
        found
    }

    fn has(&self, check: &str, subject: &str) -> bool {
        self.wrong().any(|finding| finding.check == check && finding.subject == subject)
    }

    fn assert_well(&self) {
        assert!(self.ok && self.wrong().next().is_none(), "{:#?}", self.findings);
    }
}

fn examine(rig: &Rig) -> Report {
    examine_with(rig, "gateway.toml")
}

/// With another configuration in the lab's directory.
fn examine_with(rig: &Rig, config: &str) -> Report {
    let path = rig.lab().directory().join(config).display().to_string();
    let answer = rig.matapa.cli(&["doctor", "-c", &path, "--json"]).unwrap();
    let report: Report = serde_json::from_str(&answer.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}{}", answer.stdout, answer.stderr));
    assert_eq!(answer.code(), Some(i32::from(!report.ok)), "{answer:?}");
    report
}

/// Runs the command that a finding names, on the gateway or on another machine.
fn mend(rig: &Rig, netns: &Netns, command: &str) {
    let command = format!("PATH=$PATH:/usr/sbin:/sbin; {command}");
    rig.topology.run(netns, "sh", &["-ec", &command], LIMIT).unwrap().expect(&command).unwrap();
}

/// The finding is there, its command is run, and it is gone.
fn found_and_mended(rig: &Rig, severity: &str, check: &str, subject: &str) {
    let report = examine(rig);
    let command = report.find(severity, check, subject).mend.clone().unwrap();
    mend(rig, &rig.gateway().netns, &command);
    let report = examine(rig);
    assert!(!report.has(check, subject), "after {command}: {:#?}", report.findings);
}

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn a_gateway_that_works_has_nothing_wrong() {
    let (rig, echo) = Rig::echo(&echo_config(TCP_CHECK));
    assert_prompt(&rig.connect_echo());
    let report = examine(&rig);
    report.assert_well();
    for check in
        ["daemon", "interfaces", "program", "forwarding", "addresses", "servers", "next hops", "way back"]
    {
        assert!(report.findings.iter().any(|finding| finding.check == check), "{check}: {report:#?}");
    }
    // That checksums are whole was seen in the answers to checks.
    let seen = report.findings.iter().find(|one| one.check == "checksums" && one.subject == "int").unwrap();
    assert!(seen.message.starts_with("whole in "), "{seen:?}");
    let config = rig.lab().directory().join("gateway.toml").display().to_string();
    let text = rig.matapa.cli(&["doctor", "-c", &config]).unwrap().expect("matapa doctor").unwrap();
    assert!(text.starts_with("0 problems, 0 warnings, "), "{text}");
    assert_prompt(&rig.connect_echo());
    drop(echo);
    rig.finish();
}

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn settings_of_the_kernel_are_found_and_mended() {
    let (rig, echo) = Rig::echo(&echo_config(TCP_CHECK));
    let gateway = &rig.gateway().netns;
    for (setting, value, subject) in [
        ("ipv4/ip_forward", "0", "int ip_forward"),
        ("ipv6/conf/all/forwarding", "0", "ext ip_forward"),
        ("ipv4/conf/int/rp_filter", "1", "int rp_filter"),
        ("ipv4/conf/int/accept_local", "0", "int accept_local"),
    ] {
        gateway.sysctl(&[(setting, value)]).unwrap();
        found_and_mended(&rig, "problem", "forwarding", subject);
    }
    drop(echo);
    rig.finish();
}

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn interfaces_that_are_missing_or_down() {
    let (rig, echo) = Rig::echo(&echo_config(TCP_CHECK));
    rig.gateway().unplug().unwrap();
    assert!(examine(&rig).find("problem", "interfaces", "ext").message.contains("no carrier"));
    rig.gateway().plug().unwrap();
    wait_until("the carriers", LIMIT, || Ok((!examine(&rig).has("interfaces", "ext")).then_some(())))
        .unwrap();
    rig.gateway().netns.ip("link set ext down\n").unwrap();
    found_and_mended(&rig, "problem", "interfaces", "ext");
    let other = echo_config(TCP_CHECK).replace("\"int\"]", "\"int\", \"nosuch0\"]");
    std::fs::write(rig.lab().directory().join("other.toml"), other).unwrap();
    let report = examine_with(&rig, "other.toml");
    assert!(report.find("problem", "interfaces", "nosuch0").message.contains("this machine has ext, int"));
    drop(echo);
    rig.finish();
}

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn the_daemon_and_its_program() {
    let (mut rig, echo) = Rig::echo(&echo_config(TCP_CHECK));
    rig.matapa.stop().unwrap();
    let report = examine(&rig);
    report.find("problem", "daemon", "");
    assert!(!report.has("program", "ext"), "it forwards all the same: {report:#?}");
    // The pins know of interfaces that have been made again since.
    rig.topology.replace_cables(rig.gateway()).unwrap();
    let finding = examine(&rig);
    let finding = finding.find("problem", "program", "ext");
    assert!(finding.message.contains("made again"), "{finding:?}");
    assert_eq!(finding.mend.as_deref(), Some("systemctl start matapa"));
    rig.matapa.start().unwrap();
    rig.matapa.wait_healthy(LIMIT).unwrap();
    examine(&rig).assert_well();
    rig.matapa.stop().unwrap();
    rig.matapa.detach().unwrap();
    let report = examine(&rig);
    assert!(report.find("problem", "program", "int").message.contains("nothing is forwarded"));
    drop(echo);
    rig.remove();
}

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn programs_of_others_and_drivers_without_xdp() {
    let config = echo_config(NO_CHECK).replace("\"int\"]", "\"int\", \"br0\"]");
    let mut rig = Rig::prepare(&config, &["mx1", "mx2"]);
    rig.gateway().netns.ip("link add br0 type bridge\nlink set br0 up\n").unwrap();
    rig.topology.let_pass_in(&rig.gateway().netns, "ext").unwrap();
    let report = examine(&rig);
    let finding = report.find("problem", "program", "ext");
    assert!(finding.message.contains("another XDP program"), "{finding:?}");
    let command = finding.mend.as_deref().unwrap().split(';').next().unwrap();
    mend(&rig, &rig.gateway().netns, command);
    rig.matapa.start().unwrap();
    let report = examine(&rig);
    assert!(!report.has("program", "ext"), "{report:#?}");
    assert!(report.find("warning", "program", "br0").message.contains("bridge has no native XDP"));
    rig.gateway().netns.ip("link del br0\n").unwrap();
    rig.finish();
}

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn addresses_that_nobody_has() {
    let (rig, echo) = Rig::echo(&echo_config(TCP_CHECK));
    let gateway = &rig.gateway().netns;
    gateway.ip(&format!("addr del {VIP_V4}/32 dev ext\n")).unwrap();
    let report = examine(&rig);
    let command = report.find("warning", "addresses", "203.0.113.10").mend.clone().unwrap();
    mend(&rig, gateway, command.split(", or").next().unwrap());
    examine(&rig).assert_well();
    // One of a network that the gateway is in, so nobody else would send it here.
    let near = echo_config(TCP_CHECK).replace("\"203.0.113.10:7/tcp\"", "\"192.0.2.77:7/tcp\"");
    rig.matapa.write_config(&near).unwrap();
    rig.matapa.reload().unwrap();
    rig.matapa.wait_healthy(LIMIT).unwrap();
    found_and_mended(&rig, "problem", "addresses", "192.0.2.77");
    examine(&rig).assert_well();
    drop(echo);
    rig.finish();
}

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn servers_that_are_not_there() {
    let (rig, mut echo) = Rig::echo(&echo_config(TCP_CHECK));
    drop(echo.remove(0));
    rig.matapa.wait_up(&["mx2", "mx2-v6"], LIMIT).unwrap();
    let report = examine(&rig);
    assert!(report.find("warning", "servers", "echo/mx1").message.starts_with("is down: "));
    assert!(!report.has("next hops", "mx1 (198.51.100.11)"), "the machine is there: {report:#?}");
    rig.server(1).unplug().unwrap();
    rig.gateway().flush_neighbours().unwrap();
    let report = examine(&rig);
    assert!(
        report.find("problem", "next hops", "mx1 (198.51.100.11)").message.contains("nobody on int answers")
    );
    assert!(report.has("next hops", "mx1-v6 (2001:db8:64::11)"), "{report:#?}");
    assert!(!report.has("next hops", "mx2 (198.51.100.12)"), "{report:#?}");
    rig.server(2).unplug().unwrap();
    rig.matapa.wait_up(&[], LIMIT).unwrap();
    examine(&rig).find("problem", "servers", "echo");
    let far = echo_config(TCP_CHECK).replace("198.51.100.12", "198.18.77.7");
    std::fs::write(rig.lab().directory().join("far.toml"), far).unwrap();
    let report = examine_with(&rig, "far.toml");
    assert!(report.find("problem", "next hops", "mx2 (198.18.77.7)").message.contains("no route"));
    drop(echo);
    rig.finish();
}

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn answers_that_go_another_way() {
    let (rig, echo) = Rig::echo(&echo_config(TCP_CHECK));
    for server in &rig.topology.servers {
        server
            .netns
            .ip("route replace default via 198.51.100.99\nroute replace default via 2001:db8:64::99\n")
            .unwrap();
    }
    let attempts = Rig::connect(rig.client(), vips(ECHO), Duration::from_millis(200));
    assert!(attempts.iter().all(|attempt| attempt.server().is_none()), "{attempts:?}");
    let report = examine(&rig);
    let finding = report.find("problem", "way back", "");
    assert!(finding.message.contains("none came back"), "{finding:?}");
    let only = echo_config(TCP_CHECK).replace("[\"ext\", \"int\"]", "[\"ext\"]");
    std::fs::write(rig.lab().directory().join("only.toml"), only).unwrap();
    let report = examine_with(&rig, "only.toml");
    let finding = report.find("problem", "way back", "mx1 (198.51.100.11)");
    assert_eq!(finding.mend.as_deref(), Some("add \"int\" to `interfaces`, then `matapa reload`"));
    drop(echo);
    rig.finish();
}

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn servers_that_answer_for_the_vip() {
    let config = interfaces() + &service("echo", ECHO, "tcp", NO_CHECK, &[1, 2]) + "forward = \"dsr\"\n";
    let shape = Shape { vips_on_servers: true, ..Shape::default() };
    let (rig, echo) = Rig::shaped(shape, |_| config, |_, host| EchoServer::start(host, ECHO).unwrap());
    let report = examine(&rig);
    report.assert_well();
    let hint = report.findings.iter().find(|finding| finding.check == "vip owners").unwrap();
    assert!(hint.message.contains("cannot be seen from here"), "{hint:?}");
    rig.server(2).netns.sysctl(&[("ipv4/conf/all/arp_ignore", "0")]).unwrap();
    let report = examine(&rig);
    let finding = report.find("problem", "vip owners", "203.0.113.10 on int");
    let command = finding.mend.as_deref().unwrap().strip_prefix("on mx2: ").unwrap();
    mend(&rig, &rig.server(2).netns, command);
    examine(&rig).assert_well();
    drop(echo);
    rig.finish();
}

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn tunnels_without_room() {
    let config = interfaces() + &service("echo", ECHO, "tcp", NO_CHECK, &[1]) + "forward = \"ipip\"\n";
    let shape = Shape { vips_on_servers: true, ..Shape::default() };
    let (rig, echo) = Rig::shaped(shape, |_| config, |_, host| EchoServer::start(host, ECHO).unwrap());
    for subject in ["mx1 (198.51.100.11)", "mx1-v6 (2001:db8:64::11)"] {
        let report = examine(&rig);
        let command = report.find("warning", "tunnels", subject).mend.clone().unwrap();
        mend(&rig, &rig.gateway().netns, command.split(", there").next().unwrap());
    }
    examine(&rig).assert_well();
    drop(echo);
    rig.finish();
}

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn checksums_that_senders_leave_unfinished() {
    let (rig, echo) = Rig::echo(&echo_config(TCP_CHECK));
    mend(&rig, &rig.server(1).netns, "ethtool -K eth0 tx on");
    let report = examine(&rig);
    let finding = report.find("problem", "checksums", "int");
    let command = finding.mend.as_deref().unwrap().split_once(": ").unwrap().1;
    mend(&rig, &rig.server(1).netns, command);
    examine(&rig).assert_well();
    drop(echo);
    rig.finish();
}

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn a_firewall_that_drops_carp() {
    let carp = "\n[carp.mail]\ninterface = \"ext\"\nvhid = 7\naddresses = [\"192.0.2.7/24\", \"2001:db8:c1::7/64\"]\n\
                password = \"love\"\n";
    let (rig, echo) = Rig::echo(&(echo_config(TCP_CHECK) + carp));
    let gateway = &rig.gateway().netns;
    examine(&rig).assert_well();
    mend(
        &rig,
        gateway,
        "nft 'table inet filter {
             chain input {
                 type filter hook input priority 0; policy drop;
                 ct state established,related accept
                 iifname lo accept
                 meta l4proto { icmp, icmpv6 } accept
                 tcp dport 22 accept
             }
             chain output { type filter hook output priority 0; policy accept; ip protocol vrrp drop; }
         }'",
    );
    loop {
        let report = examine(&rig);
        let Some(finding) = report.wrong().find(|finding| finding.check == "firewall") else { break };
        assert_eq!((finding.severity.as_str(), finding.subject.as_str()), ("problem", "mail"));
        mend(&rig, gateway, finding.mend.as_deref().unwrap());
    }
    let rules = rig.topology.run(gateway, "nft", &["list", "ruleset"], LIMIT).unwrap().expect("nft").unwrap();
    assert_eq!(rules.matches("accept").count() - 4, 4, "input over both families, output over IPv4: {rules}");
    drop(echo);
    rig.finish();
}
