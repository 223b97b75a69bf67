# Real traffic through Matapa: client, gateway and server on two cables, veth or virtio, native mode.
# Usage: traffic.sh veth|virtio
kind=$1
. /checks.sh
vip4=203.0.113.10
vip6=[2001:db8:cb::10]

# Gives a name and a namespace to the device with this MAC address.
move() {
    for device in /sys/class/net/*; do
        read -r mac <$device/address
        if [ "$mac" = "02:00:00:00:00:0$1" ]; then
            ip link set ${device##*/} name $3 netns $2
            return
        fi
    done
    echo "no network device has the MAC address 02:00:00:00:00:0$1"
    return 1
}

cables() {
    for space in client gateway server; do
        ip netns add $space && ip -n $space link set lo up || return 1
        inside $space sh -c 'echo 0 >/proc/sys/net/ipv6/conf/default/accept_dad'
    done
    if [ $kind = veth ]; then
        ip -n client link add eth0 type veth peer name ext netns gateway &&
            ip -n server link add eth0 type veth peer name int netns gateway || return 1
        # Frames that XDP sends are dropped unless the other end polls, which GRO makes it do.
        inside client ethtool -K eth0 gro on && inside server ethtool -K eth0 gro on || return 1
    else
        move 1 client eth0 && move 2 gateway ext && move 3 gateway int && move 4 server eth0 || return 1
    fi
    if [ $kind = veth ]; then
        # XDP sees a packet before its checksum is filled in unless the sender does it itself.
        inside client ethtool -K eth0 tx off && inside server ethtool -K eth0 tx off || return 1
    fi
}

addresses() {
    ip -n client -batch - <<BATCH || return 1
link set eth0 up
addr add 192.0.2.2/24 dev eth0
addr add 2001:db8:c1::2/64 dev eth0 nodad
route add default via 192.0.2.1
route add default via 2001:db8:c1::1
BATCH
    ip -n server -batch - <<BATCH || return 1
link set eth0 up
addr add 198.51.100.11/24 dev eth0
addr add 198.51.100.12/24 dev eth0
addr add 2001:db8:64::11/64 dev eth0 nodad
addr add 2001:db8:64::12/64 dev eth0 nodad
route add default via 198.51.100.1
route add default via 2001:db8:64::1
BATCH
    ip -n gateway -batch - <<BATCH || return 1
link set ext up
link set int up
addr add 192.0.2.1/24 dev ext
addr add 2001:db8:c1::1/64 dev ext nodad
addr add 203.0.113.10/32 dev ext
addr add 2001:db8:cb::10/128 dev ext nodad
addr add 198.51.100.1/24 dev int
addr add 2001:db8:64::1/64 dev int nodad
BATCH
    inside gateway sh -c 'echo 1 >/proc/sys/net/ipv4/ip_forward && echo 1 >/proc/sys/net/ipv6/conf/all/forwarding'
}

network() { cables && addresses; }

servers() {
    for number in 11 12; do
        mkdir -p $dir/www$number
        echo $number >$dir/www$number/name
        ln -s $dir/big $dir/www$number/big
        inside server httpd -p 198.51.100.$number:80 -h $dir/www$number || return 1
        inside server httpd -p [2001:db8:64::$number]:80 -h $dir/www$number || return 1
    done
    dd if=/dev/urandom of=$dir/big bs=64k count=16 2>/dev/null
}

configuration() {
    cat >$dir/matapa.toml <<TOML
interfaces = ["ext", "int"]
xdp_mode = "native"

[pools.web]
check = { type = "tcp", interval = "2s", timeout = "1s", rise = 1, fall = 2 }
backends = [
  { name = "a", address = "198.51.100.11" },
  { name = "b", address = "198.51.100.12" },
  { name = "a-v6", address = "2001:db8:64::11" },
  { name = "b-v6", address = "2001:db8:64::12" },
]

[services.web]
listen = ["$vip4:80", "$vip6:80"]
pool = "web"
TOML
    cli check -c $dir/matapa.toml
}

backends_up() {
    until_good all_up && return
    cli show backends
    echo "not all of the four backends came up"
    return 1
}

all_up() { [ "$(cli show backends --json | tr ',{}' '\n' | grep -c '"health": *"up"')" = 4 ]; }

name() {
    answer=$(get "$1" name | tail -n 1)
    case $answer in
    11 | 12) echo $answer ;;
    *) echo "$1 answered \"$answer\"" && return 1 ;;
    esac
}

both_answer() {
    rm -f $dir/names
    # All on one side once in 2^23 times.
    for try in $(seq 24); do
        name "$1" >>$dir/names || break
    done
    [ "$(sort -u $dir/names | tr '\n' ' ')" = "11 12 " ] && return
    cat $dir/names
    echo "24 connections did not reach both servers and nothing else"
    return 1
}

whole() { get "$1" big | tail -c 1048576 | cmp - $dir/big; }

killed() {
    before=$(replies)
    kill -9 $pid
    wait $pid
    native >/dev/null && name $vip4 && name $vip6
}

# What went to clients so far; new maps would begin at 0.
replies() { cli show counters --json | sed -n 's/.*"to_client": *{[^}]*"value": *\([0-9]*\).*/\1/p'; }

adopted() {
    daemon && sent=$(replies) && echo "to clients: $before packets under the first daemon, $sent under this one" &&
        [ "$sent" -ge "$before" ] && name $vip4 && name $vip6
}

detached() {
    kill $pid && wait $pid
    cli detach || return 1
    native >/dev/null && echo "the program is still attached" && return 1
    [ ! -e $MATAPA_PIN_DIR ] || [ -z "$(ls $MATAPA_PIN_DIR)" ]
}

need "network" network
need "servers" servers
need "configuration" configuration
need "matapa starts" daemon
check "native mode" native
need "backends come up" backends_up
check "24 connections over IPv4" both_answer $vip4
check "24 connections over IPv6" both_answer $vip6
check "a megabyte over IPv4" whole $vip4
check "a megabyte over IPv6" whole $vip6
cli show counters
[ -z "$failed" ] || explain
check "forwarding outlives kill -9" killed
check "a new daemon takes over" adopted
check "matapa detach leaves nothing" detached

killall httpd
for space in client gateway server; do
    ip netns delete $space
done
