# Tunnels that end in the kernel's own modules on the server, and VLANs: the gateway's interfaces carry tagged frames
# for its VLAN interfaces. First the kernel wraps by itself, which shows that what comes next can work.
kind=tunnels
. /checks.sh
# Modes, each with a pair of addresses.
modes="ipip4 ipip6 gue4 gue6"
server4=198.51.100.11
server6=2001:db8:64::11

number() {
    case $1 in
    nat) echo 0 ;;
    ipip4) echo 3 ;;
    ipip6) echo 4 ;;
    gue4) echo 5 ;;
    gue6) echo 6 ;;
    esac
}

vip4() { echo 203.0.113.1$(number $1); }
vip6() { echo 2001:db8:cb::1$(number $1); }

cables() {
    for space in client gateway server; do
        ip netns add $space && ip -n $space link set lo up || return 1
        inside $space sh -c 'echo 0 >/proc/sys/net/ipv6/conf/default/accept_dad'
        inside $space sh -c 'for all in all default; do echo 0 >/proc/sys/net/ipv4/conf/$all/rp_filter; done'
    done
    ip -n client link add eth0 type veth peer name ext netns gateway &&
        ip -n server link add eth0 type veth peer name int netns gateway || return 1
    for space in client server; do
        # As in traffic.sh; and the tag is to be in the frame, as on a wire, not beside it.
        inside $space ethtool -K eth0 gro on && inside $space ethtool -K eth0 tx off txvlan off || return 1
    done
}

addresses() {
    ip -n client -batch - <<BATCH || return 1
link set eth0 up
addr add 192.0.2.2/24 dev eth0
addr add 2001:db8:c1::2/64 dev eth0 nodad
route add default via 192.0.2.1
route add default via 2001:db8:c1::1
link add link eth0 name eth0.7 type vlan id 7
link set eth0.7 up
addr add 198.18.7.2/24 dev eth0.7
addr add 2001:db8:c7::2/64 dev eth0.7 nodad
route add $(vip4 nat) via 198.18.7.1
route add $(vip6 nat) via 2001:db8:c7::1
route add 198.18.8.0/24 via 198.18.7.1
route add 2001:db8:c8::/64 via 2001:db8:c7::1
BATCH
    ip -n server -batch - <<BATCH || return 1
link set eth0 up
addr add $server4/24 dev eth0
addr add $server6/64 dev eth0 nodad
route add default via 198.51.100.1
route add default via 2001:db8:64::1
link add link eth0 name eth0.8 type vlan id 8
link set eth0.8 up
addr add 198.18.8.11/24 dev eth0.8
addr add 2001:db8:c8::11/64 dev eth0.8 nodad
route add 198.18.7.0/24 via 198.18.8.1
route add 2001:db8:c7::/64 via 2001:db8:c8::1
BATCH
    ip -n gateway -batch - <<BATCH || return 1
link set ext up
link set int up
addr add 192.0.2.1/24 dev ext
addr add 2001:db8:c1::1/64 dev ext nodad
addr add 198.51.100.1/24 dev int
addr add 2001:db8:64::1/64 dev int nodad
link add link ext name ext.7 type vlan id 7
link set ext.7 up
addr add 198.18.7.1/24 dev ext.7
addr add 2001:db8:c7::1/64 dev ext.7 nodad
link add link int name int.8 type vlan id 8
link set int.8 up
addr add 198.18.8.1/24 dev int.8
addr add 2001:db8:c8::1/64 dev int.8 nodad
BATCH
    inside gateway sh -c 'echo 1 >/proc/sys/net/ipv4/ip_forward && echo 1 >/proc/sys/net/ipv6/conf/all/forwarding'
}

network() { cables && addresses; }

# The devices that every namespace has take tunnels from anywhere; for IPv4 in IPv6 there is none.
server() {
    ip -n server -batch - <<BATCH || return 1
link set tunl0 up
link set sit0 up
link add in6 type ip6tnl mode any local $server6 remote ::
link set in6 up
fou add port 6080 gue
BATCH
    ip -6 -n server fou add port 6080 gue || return 1
    for mode in $modes; do
        ip -n server addr add $(vip4 $mode)/32 dev lo && ip -n server addr add $(vip6 $mode)/128 dev lo || return 1
    done
    mkdir -p $dir/www
    echo 11 >$dir/www/name
    # Over IPv4 and IPv6 alike.
    inside server httpd -p 80 -h $dir/www
}

# wrap ADDRESS DEVICE TYPE OPTIONS...: the kernel's own tunnel for this address.
wrap() {
    address=$1
    device=$2
    shift 2
    ip -n gateway link add $device type "$@" &&
        ip -n gateway link set $device up &&
        ip -n gateway route replace $address dev $device
}

# The kernel's own tunnels in place of this mode. One at a time: two between the same addresses are refused.
kernel_wraps() {
    case $1 in
    # Its GUE is of the other variant, but goes to the same port.
    gue*) gue="encap gue encap-sport auto encap-dport 6080" ;;
    *) gue= ;;
    esac
    case $1 in
    *4)
        ends="local 198.51.100.1 remote $server4"
        wrap $(vip4 $1) wrap4 ipip $ends $gue && wrap $(vip6 $1) wrap6 sit $ends $gue
        ;;
    *6)
        ends="local 2001:db8:64::1 remote $server6"
        # It takes both.
        wrap $(vip4 $1) wrap4 ip6tnl mode any $ends $gue && ip -n gateway route replace $(vip6 $1) dev wrap4
        ;;
    esac
}

kernels_own() {
    kernel_wraps $1 && both_answer $1 || return 1
    # Nothing of it is left to confuse what comes next.
    ip -n gateway link del wrap4 || return 1
    case $1 in *4) ip -n gateway link del wrap6 ;; esac
}

answers() {
    for try in 1 2 3 4; do
        answer=$(get "$1" name | tail -n 1)
        [ "$answer" = 11 ] || { echo "$1 answered \"$answer\"" && return 1; }
    done
}

both_answer() { answers $(vip4 $1) && answers $(vip6 $1); }

vlans_answer() { answers 198.18.8.11 && answers 2001:db8:c8::11; }

# service NAME FORWARD BACKENDS
service() {
    cat <<TOML
[services.$1]
listen = ["$(vip4 $1):80", "[$(vip6 $1)]:80"]
forward = "$2"
backends = [$3]

TOML
}

configuration() {
    {
        printf 'interfaces = ["ext", "int"]\nxdp_mode = "native"\n\n'
        service nat nat '"198.18.8.11", "2001:db8:c8::11"'
        service ipip4 ipip "\"$server4\""
        service ipip6 ipip "\"$server6\""
        service gue4 gue "\"$server4\""
        service gue6 gue "\"$server6\""
    } >$dir/matapa.toml
    cli check -c $dir/matapa.toml
}

# Packets that the program itself has sent to backends.
forwarded() { cli show counters --json | sed -n 's/.*"to_backend": *{[^}]*"value": *\([0-9]*\).*/\1/p'; }

# counted COMMAND...: and the program did it, not the kernel.
counted() {
    before=$(forwarded)
    "$@" || return 1
    after=$(forwarded)
    echo "$before packets sent to backends before, $after after"
    # Eight requests take five packets each; of these the kernel may have sent the first few.
    [ $((after - before)) -ge 30 ]
}

detached() { kill $pid && wait $pid && cli detach; }

need "network" network
need "server" server
for mode in $modes; do
    need "the kernel's own tunnel arrives: $mode" kernels_own $mode
done
need "from one VLAN to another without a service" vlans_answer
need "configuration" configuration
need "matapa starts" daemon
check "native mode" native
for mode in $modes; do
    check "unwrapped by the kernel: $mode" counted both_answer $mode
done
check "from one VLAN to another" counted both_answer nat
cli show counters
[ -z "$failed" ] || explain
check "matapa detach" detached

killall httpd
for space in client gateway server; do
    ip netns delete $space
done
