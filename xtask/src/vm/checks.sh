# What the scripts that make checks have in common. They set `kind` first.
dir=/run/$kind
socket=$dir/control.sock
log=$dir/matapa.log
export MATAPA_PIN_DIR=/sys/fs/bpf/$kind
failed=
mkdir -p $dir

# The shell prefers its own applet to a file.
ip() { /usr/sbin/ip "$@"; }

pass() { echo "vm: pass $kind: $1"; }

fail() {
    echo "vm: fail $kind: $1: $(tail -n 1 $dir/out)"
    tail -n 40 $dir/out
    failed=yes
}

explain() {
    echo "--- matapa's log"
    cat $log
    echo "--- matapa's view"
    cli show backends
    cli show counters
    echo "--- the gateway's links"
    ip -n gateway -details -stats link show
}

# check NAME COMMAND...
check() {
    name=$1
    shift
    if "$@" >$dir/out 2>&1; then pass "$name"; else fail "$name"; fi
}

# As check, for what all later checks need.
need() {
    check "$@"
    [ -z "$failed" ] && return
    echo "vm: fail $kind: the checks after \"$name\" were not made"
    explain
    exit
}

inside() {
    space=$1
    shift
    nsenter --net=/run/netns/$space "$@"
}

cli() { timeout 10 matapa --color never --socket $socket "$@"; }

# Repeats a command for fifteen seconds until it succeeds.
until_good() {
    tries=0
    until "$@"; do
        tries=$((tries + 1))
        [ $tries -lt 75 ] || return 1
        usleep 200000
    done
}

daemon() {
    # Not by inside(): the job would be a shell, and a signal would not reach the daemon.
    nsenter --net=/run/netns/gateway matapa --color never --socket $socket run -c $dir/matapa.toml >>$log 2>&1 &
    pid=$!
    for try in $(seq 100); do
        # With the stages that come last.
        cli show && ls $MATAPA_PIN_DIR | grep -q '^programs-' && return
        kill -0 $pid || break
        usleep 200000
    done
    echo "$(tail -n 1 $log)"
    return 1
}

native() {
    for device in ext int; do
        ip -n gateway -details link show dev $device
        ip -n gateway -details link show dev $device | grep -q 'prog/xdp ' || return 1
    done
}

# The answer with its head. (wget in a static busybox crashes where it looks up the port of "http".)
get() { printf "GET /$2 HTTP/1.0\\r\\n\\r\\n" | inside client timeout 10 nc "$1" 80; }
