//! Configurations that are accepted: what they mean, and that the examples stay valid.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use lb_userspace::config::{
    self, Check, Config, Flows, Forward, Listen, OnDown, Prefix, Probe, Protocol, Scheduler, Smtp, Snat,
    Tunnel, XdpMode,
};

fn toml_files(directory: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(directory)
        .expect("a directory of configurations")
        .map(|entry| entry.expect("a readable directory").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "toml"))
        .collect();
    files.sort();
    assert!(!files.is_empty(), "no files in {}", directory.display());
    files
}

fn here(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn load(path: &Path) -> Config {
    match config::load(path) {
        Ok(config) => config,
        Err(error) => panic!("{}", error.render(false)),
    }
}

#[test]
fn every_example_is_valid() {
    for file in toml_files(&here("../examples")) {
        load(&file);
    }
}

#[test]
fn good_files_are_explained() {
    let mut settings = insta::Settings::clone_current();
    settings.set_snapshot_path("config/good");
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    settings.bind(|| {
        for file in toml_files(&here("tests/config/good")) {
            let name = file.file_stem().unwrap().to_string_lossy().into_owned();
            insta::assert_snapshot!(name, config::explain(&load(&file)));
        }
    });
}

#[test]
fn smallest() {
    let config = load(&here("../examples/matapa.toml"));
    assert_eq!(config.interfaces, ["eth0"]);
    assert_eq!(config.xdp_mode, XdpMode::Auto);
    assert_eq!(config.control.socket, Path::new("/run/matapa/control.sock"));
    assert_eq!(config.control.metrics, None);
    let [service] = config.services.as_slice() else { panic!("{config:?}") };
    let [pool] = config.pools.as_slice() else { panic!("{config:?}") };
    assert_eq!((service.name.as_str(), service.pool), ("mail", 0));
    assert_eq!(service.session_timeout, Duration::from_secs(600));
    assert_eq!(service.listen[0].to_string(), "203.0.113.10:25/tcp");
    assert_eq!(pool.name, "mail");
    assert_eq!(pool.on_down, OnDown::Reset);
    let check = Check::of(Probe::Smtp(Smtp::Plain));
    assert_eq!((check.interval, check.timeout), (Duration::from_secs(10), Duration::from_secs(2)));
    assert_eq!((check.rise, check.fall, check.jitter, check.port), (1, 2, 5, None));
    assert_eq!(pool.check, Some(check));
    let backends: Vec<_> =
        pool.backends.iter().map(|backend| (backend.name.as_str(), backend.port, backend.weight)).collect();
    assert_eq!(backends, [("198.51.100.11", None, 1), ("198.51.100.12", None, 1)]);
}

#[test]
fn lab() {
    let config = load(&here("../examples/lab.toml"));
    assert_eq!(config.interfaces, ["ext", "int"]);
    assert_eq!(config.services[0].listen.len(), 2);
    let pool = &config.pools[config.services[0].pool];
    assert_eq!(pool.name, "mx");
    assert_eq!(pool.check.as_ref().map(|check| check.timeout), Some(Duration::from_millis(500)));
    assert_eq!(pool.backends.iter().filter(|backend| backend.address.is_ipv6()).count(), 2);
    let shared: Vec<usize> = config.carp.iter().map(|vhid| vhid.addresses.len()).collect();
    assert_eq!(shared, [4, 2]);
}

#[test]
fn pair() {
    let config = load(&here("../examples/pair.toml"));
    assert_eq!(config.carp.iter().map(|vhid| vhid.vhid).collect::<Vec<_>>(), [10, 11]);
    assert!(config.carp.iter().all(|vhid| vhid.preempt && vhid.advskew == 0));
    let sync = config.cluster.sync.unwrap();
    assert_eq!((sync.interface.as_str(), sync.peer), ("eth2", "10.0.0.2".parse().unwrap()));
}

#[test]
fn order_of_the_file_and_names() {
    let config = load(&here("tests/config/good/full.toml"));
    let names = |pools: &[config::Pool]| pools.iter().map(|pool| pool.name.clone()).collect::<Vec<_>>();
    assert_eq!(names(&config.pools), ["mx", "spool"]);
    assert_eq!(config.services.iter().map(|service| service.pool).collect::<Vec<_>>(), [0, 1]);

    let config = load(&here("tests/config/good/udp.toml"));
    assert_eq!(names(&config.pools), ["dns:main", "syslog"]);
    let named: Vec<_> =
        config.pools[1].backends.iter().map(|backend| (backend.name.as_str(), backend.port)).collect();
    let expected =
        [("198.51.100.60", None), ("198.51.100.60:5514", Some(5514)), ("198.51.100.60:5515", Some(5515))];
    assert_eq!(named, expected);
}

#[test]
fn backends_in_brackets() {
    let source = "interfaces = ['eth0']\n[services.a]\nlisten = '[2001:db8::10]:25'\n\
                  backends = ['2001:db8::1', '[2001:db8::2]', '[2001:db8::3]:2525']\n";
    let config = config::parse(source, Path::new("x.toml")).unwrap();
    let backends: Vec<_> =
        config.pools[0].backends.iter().map(|backend| (backend.address, backend.port)).collect();
    let address = |text: &str| text.parse::<IpAddr>().unwrap();
    let expected = [
        (address("2001:db8::1"), None),
        (address("2001:db8::2"), None),
        (address("2001:db8::3"), Some(2525)),
    ];
    assert_eq!(backends, expected);
}

#[test]
fn crlf_and_byte_order_mark() {
    let text = std::fs::read_to_string(here("../examples/matapa.toml")).unwrap();
    let windows = format!("\u{feff}{}", text.replace('\n', "\r\n"));
    let file = Path::new("x.toml");
    assert_eq!(config::parse(&windows, file), config::parse(&text, file));
}

#[test]
fn modes() {
    let config = load(&here("tests/config/good/modes.toml"));
    let flows = Flows {
        capacity: 1_000_000,
        opening: Duration::from_secs(10),
        closing: Duration::from_secs(60),
        closed: Duration::from_secs(5),
        datagram: Duration::from_secs(90),
    };
    assert_eq!(config.flows, flows);
    let tunnel = Tunnel {
        source4: Prefix { address: Ipv4Addr::new(10, 255, 0, 0).into(), len: 16 },
        source6: Prefix { address: Ipv6Addr::new(0x2001, 0xdb8, 0xffff, 0, 0, 0, 0, 0).into(), len: 64 },
    };
    assert_eq!(config.tunnel, tunnel);
    let [web, news, mail, names] = config.services.as_slice() else { panic!("{config:?}") };
    let modes = [web, news, mail, names].map(|service| (service.forward, service.second_chance));
    let expected =
        [(Forward::Snat, true), (Forward::Dsr, false), (Forward::Ipip, false), (Forward::Gue, false)];
    assert_eq!(modes, expected);
    let snat = Snat {
        addresses: ["198.51.100.1", "198.51.100.2", "2001:db8:64::1"]
            .map(|text| text.parse().unwrap())
            .into(),
        first_port: 2000,
        last_port: 29999,
    };
    assert_eq!(web.snat, Some(snat));
    assert_eq!((web.scheduler, web.sticky), (Scheduler::LeastConnections, Some(Duration::from_secs(600))));
    assert_eq!((web.new_flow_limit, names.new_flow_limit), (50_000, 100_000));
    assert_eq!((mail.gue_port, names.gue_port), (6080, 6081));
    assert_eq!((&names.snat, names.sticky), (&None, None));
}

#[test]
fn defaults() {
    let config = load(&here("../examples/matapa.toml"));
    assert_eq!((config.flows, config.tunnel), (Flows::default(), Tunnel::default()));
    let service = &config.services[0];
    assert_eq!((service.forward, service.scheduler), (Forward::Nat, Scheduler::Maglev));
    assert!(service.second_chance);

    let source = "interfaces = ['eth0']\n[services.a]\nlisten = '203.0.113.10:25'\nforward = 'snat'\n\
                  backends = ['198.51.100.11']\nsnat.addresses = ['198.51.100.1']\n";
    let config = config::parse(source, Path::new("x.toml")).unwrap();
    let ports = config.services[0].snat.as_ref().map(|snat| (snat.first_port, snat.last_port));
    assert_eq!(ports, Some((1024, 32767)));
}

#[test]
fn ranges() {
    let config = load(&here("tests/config/good/ranges.toml"));
    let address = |text: &str| text.parse::<IpAddr>().unwrap();
    let listen =
        |text, port, last_port, protocol| Listen { address: address(text), port, last_port, protocol };
    let all: Vec<Listen> = config.services.iter().flat_map(|service| service.listen.clone()).collect();
    let expected = [
        listen("203.0.113.10", 21, 21, Protocol::Tcp),
        listen("203.0.113.10", 8000, 8100, Protocol::Tcp),
        listen("2001:db8:cb::10", 8000, 8100, Protocol::Udp),
        listen("203.0.113.10", 8101, 8101, Protocol::Tcp),
        listen("203.0.113.11", 1, 65535, Protocol::Tcp),
        listen("203.0.113.10", 0, 0, Protocol::Any),
        listen("2001:db8:cb::10", 0, 0, Protocol::Any),
        listen("2001:db8:cb::11", 0, 0, Protocol::Any),
    ];
    assert_eq!(all, expected);
}
