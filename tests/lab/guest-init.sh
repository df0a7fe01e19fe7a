#!/bin/busybox sh
# The lab guest's /init: devices, the drivers under test in their order of loading, the test's script, power off.
/bin/busybox mkdir -p /bin /proc /sys /dev /tmp
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tmpfs tmp /tmp
for module in /modules/*; do insmod "$module"; done
echo "guest: running"
sh /guest.sh
echo "guest: script ended with status $?"
poweroff -f
