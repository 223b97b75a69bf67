//! Every gateway that Matapa is measured beside is set up right: packets of all flows arrive and are answered, by both servers,
//! and went through a gateway of that kind.

use std::path::PathBuf;
use std::time::Duration;

use lb_bench::peers::gateways::Kind;
use lb_bench::peers::network::Cpus;
use lb_bench::peers::packets::Ends;
use lb_bench::peers::programs::object;
use lb_bench::peers::{Options, Rig};

const RATE: f64 = 500.0;
const TIME: Duration = Duration::from_millis(200);

fn options() -> Options {
    let binary =
        std::env::var_os("MATAPA_BIN").expect("MATAPA_BIN names the matapa to test: cargo xtask test");
    Options {
        rounds: 1,
        time: TIME,
        quick: true,
        kinds: Kind::ALL.to_vec(),
        matapa: PathBuf::from(binary),
        traffic: object(),
    }
}

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn each_gateway_forwards_and_proves_it() {
    let (options, cpus) = (options(), Cpus::choose().unwrap());
    for kind in Kind::ALL {
        let name = kind.name();
        let mut rig = match Rig::new(kind, cpus, &options).unwrap_or_else(|error| panic!("{name}: {error:#}"))
        {
            Ok(rig) => rig,
            Err(why) => {
                // Kernels may be built without flow tables, and without nothing else.
                assert_eq!(kind, Kind::Flowtable, "{}", why.0);
                println!("{name}: {}", why.0);
                continue;
            }
        };
        if !kind.is_proxy() {
            let ends = Ends::prepare(&rig.network, &mut rig.gateway, &options.traffic);
            let mut ends = ends.unwrap_or_else(|error| panic!("{name}: {error:#}"));
            let flood = ends.flood(TIME).unwrap_or_else(|error| panic!("{name}: {error:#}"));
            println!("{name}: {} packets, {:?} of CPU", flood.forwarded, flood.cpu);
            assert!(!flood.cpu.is_zero(), "{name} forwards at a cost");
        }
        let found = rig.exchange(RATE, TIME).unwrap_or_else(|error| panic!("{name}: {error:#}"));
        assert_eq!(found.latencies.total(), found.sent, "{name}: each message has one answer");
        rig.finish().unwrap();
    }
}

/// What the proof is worth: routed traffic is not taken for Matapa's.
#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn traffic_of_another_gateway_is_an_error() {
    let options = options();
    let mut rig = Rig::new(Kind::Routing, Cpus::choose().unwrap(), &options).unwrap().unwrap();
    rig.gateway.kind = Kind::Nat;
    let error = rig.exchange(RATE, TIME).unwrap_err();
    assert!(error.to_string().contains("through Matapa nat, which counted"), "{error:#}");
}
