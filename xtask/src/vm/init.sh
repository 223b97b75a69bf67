#!/busybox/busybox sh
# Process 1 of a test machine. A line "vm: pass NAME" or "vm: fail NAME" is a check, "vm: done" the end.
/busybox/busybox --install -s /busybox
export PATH=/usr/sbin:/usr/bin:/busybox RUST_BACKTRACE=0
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir -p /tmp
. /settings.sh
# The shell prefers its own applets to files.
ip() { /usr/sbin/ip "$@"; }

read -r up _ </proc/uptime
echo "vm: Linux $(uname -r) started the checks $up s after boot, $(nproc) CPUs"
for module in /modules/*.ko; do
    insmod "$module" || echo "vm: fail module $module"
done
ip link set lo up

# An emulated processor takes long to load the program.
export MATAPA_ONLY_WORLD=modes
for test in /tests/*; do
    echo "vm: begin ${test##*/}"
    timeout 1400 "$test" --ignored --test-threads=1 --show-output </dev/null 2>&1
done
for kind in veth virtio; do
    echo "vm: begin traffic over $kind"
    sh /traffic.sh $kind </dev/null 2>&1
done
echo "vm: begin tunnels and VLANs"
sh /tunnels.sh </dev/null 2>&1

if dmesg | grep -E 'WARNING:|BUG:|Oops|general protection|Call Trace' >/run/bad; then
    dmesg
    echo "vm: fail the kernel's log: $(head -n 1 /run/bad)"
else
    echo "vm: pass the kernel's log has no warning"
fi
read -r up _ </proc/uptime
echo "vm: $up s after boot"
echo "vm: done"
sync
poweroff -f
