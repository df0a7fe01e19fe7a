#!/bin/sh
# enter.sh ROOT COMMAND...: run a command inside the lab's root. It sees this machine's /proc, /sys, /dev and /tmp, and the current
# directory at the same path. Its mounts are its own and go with it: the mount namespace is private, /run is an empty tmpfs, and huge
# pages (of the size LAB_HUGE names, if it is set) are a hugetlbfs of its own on /hugepages. The command dies with its parent.
set -eu
if [ -z "${LAB_ENTERED:-}" ]; then
    LAB_ENTERED=1 exec setpriv --pdeathsig KILL unshare --mount --propagation private "$0" "$@"
fi
unset LAB_ENTERED
root=$1
shift
for dir in /proc /sys /dev /tmp "$PWD"; do
    mkdir -p "$root$dir"
    mount --rbind "$dir" "$root$dir"
done
mount -t tmpfs -o mode=755 run "$root/run"
[ -z "${LAB_HUGE:-}" ] || mount -t hugetlbfs -o "pagesize=$LAB_HUGE" hugepages "$root/hugepages"
export PATH=/usr/sbin:/usr/bin
exec chroot "$root" /usr/bin/busybox sh -c 'cd "$0" && exec "$@"' "$PWD" "$@"
