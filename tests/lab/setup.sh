#!/bin/sh
# setup.sh DIR: make the lab's root in DIR: Debian trixie's QEMU 11 with its tools for images, DPDK testpmd, fio, the tools of ext4, of
# NVMe, of PCI and of vDPA and busybox with all their libraries, and in DIR/guest a kernel with the modules of the devices under test,
# and apart from them those of VDUSE, for drivers of the kernel and for processes.
#
# Packages are fetched by this machine's apt (its mirror, proxies and keys) into a state of their own and only unpacked: nothing is
# installed on this machine, no maintainer script runs, and no service can start. DIR appears by a rename at the very end, so a DIR
# that is there is whole. After a failure DIR.partial keeps what was downloaded and the next run goes on from it.
set -eu

DIR=$1
WORK=$DIR.partial
ROOT=$WORK/root
APT=$WORK/apt
KERNEL=7.3.4+deb13-cloud-amd64
MODULES="virtio_net virtio_blk"
VDUSE="vduse virtio_vdpa tun"
VHOST="vduse vhost_vdpa"

fail() { echo "lab: $*" >&2; exit 1; }
[ -e "$DIR" ] && exit 0
[ "$(id -u)" = 0 ] || fail "only root can enter another root file system"
for tool in apt-get apt-cache dpkg-deb unshare chroot setpriv flock xz; do
    command -v $tool >/dev/null || fail "$tool is not installed"
done
[ "$(dpkg --print-architecture)" = amd64 ] || fail "the lab is made of amd64 packages"

# One at a time, also when whoever started us was killed and we were not.
exec 9>"$DIR.lock"
flock -w 900 9 || fail "another set-up of $DIR takes too long"
[ -e "$DIR" ] && exit 0

mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' | grep '/debian/$' | head -n 1) || true
[ -n "$mirror" ] || fail "apt has no Debian mirror in its sources"

# An apt state of its own: empty status, so every dependency is fetched; backports on a par with trixie, so the newest wins.
rm -rf "$ROOT"
mkdir -p "$ROOT" "$APT/state/lists/partial" "$APT/archives/partial"
: > "$APT/status"
signed='[signed-by=/usr/share/keyrings/debian-archive-keyring.gpg]'
printf 'deb %s %s %s main\n' "$signed" "$mirror" trixie "$signed" "$mirror" trixie-backports > "$APT/sources"
printf 'Package: *\nPin: release n=trixie-backports\nPin-Priority: 500\n' > "$APT/preferences"
cat > "$APT/conf" <<CONF
Dir::State "$APT/state";
Dir::State::status "$APT/status";
Dir::Cache "$APT";
Dir::Cache::archives "$APT/archives";
Dir::Etc::sourcelist "$APT/sources";
Dir::Etc::sourceparts "/dev/null";
Dir::Etc::preferences "$APT/preferences";
Dir::Etc::preferencesparts "/dev/null";
APT::Install-Recommends "false";
APT::Sandbox::User "root";
Acquire::Languages "none";
Acquire::IndexTargets::deb::DEP-11::DefaultEnabled "false";
Acquire::Retries "3";
DPkg::Post-Invoke {};
CONF
export APT_CONFIG="$APT/conf" DEBIAN_FRONTEND=noninteractive
apt-get update -qq -o APT::Update::Error-Mode=any || fail "apt-get update failed: is the Debian mirror reachable?"
apt-get autoclean -qq # what an earlier run fetched and the mirror has replaced since

# testpmd lives in a development package whose headers and static libraries nobody here needs: take its libraries, not its -dev friends.
testpmd_needs=$(apt-cache depends dpdk-dev | awk '$1 == "Depends:" && $2 !~ /-dev$|^python|^<|-support$/ { print $2 }')
# fio wants an interpreter for its scripts, and QEMU's block drivers the libraries of all of them: one driver is of use here, libblkio.
fio_needs=$(apt-cache depends fio | awk '$1 == "Depends:" && $2 !~ /^python|^init-system/ { print $2 }')
apt-get install -qq -y --download-only base-files libc-bin busybox-static kmod liblzma5 qemu-system-x86 seabios qemu-utils libblkio1 \
    e2fsprogs nvme-cli pciutils iproute2 librte-net-virtio25 librte-net-vhost25 librte-mempool-ring25 $testpmd_needs $fio_needs >/dev/null ||
    fail "apt-get could not fetch the packages"
(cd "$APT/archives" && apt-get download -qq dpdk-dev fio qemu-block-extra "linux-binary-$KERNEL" "linux-modules-$KERNEL") ||
    fail "apt-get could not fetch testpmd, fio, QEMU's block drivers or kernel $KERNEL"

mkdir -p "$ROOT/usr/bin" "$ROOT/usr/sbin" "$ROOT/usr/lib" "$ROOT/usr/lib64"
for d in bin sbin lib lib64; do ln -s usr/$d "$ROOT/$d"; done
for deb in "$APT"/archives/*.deb; do
    dpkg-deb --fsys-tarfile "$deb" | tar -x -C "$ROOT" --keep-directory-symlink --no-same-owner \
        --exclude='./usr/share/doc' --exclude='./usr/share/man' --exclude='./usr/share/locale' --exclude='./boot' || fail "cannot unpack $deb"
done
mkdir -p "$ROOT/proc" "$ROOT/sys" "$ROOT/dev" "$ROOT/tmp" "$ROOT/run" "$ROOT/hugepages" "$ROOT/guest"
chroot "$ROOT" /sbin/ldconfig

# The guest: a kernel, the modules in the order of loading, and one static program that is its whole userland.
mv "$ROOT/usr/lib/modules/$KERNEL/vmlinuz" "$ROOT/guest/vmlinuz" || fail "no kernel image in its package"
cp "$ROOT/usr/bin/busybox" "$ROOT/guest/busybox"
chroot "$ROOT" /sbin/depmod "$KERNEL" 2>/dev/null # it warns of the list of built-in modules, which is not packaged here
# load FOLDER FIRST MODULE...: the files of these modules and of those they need, numbered from FIRST in the order of loading
load() {
    folder=$ROOT/guest/$1
    n=$2
    shift 2
    mkdir -p "$folder"
    for module in "$@"; do
        chroot "$ROOT" /sbin/modprobe -S "$KERNEL" --show-depends "$module" || fail "the kernel has no module $module"
    done > "$WORK/insmod"
    awk '$1 == "insmod" && !seen[$2]++ { print $2 }' "$WORK/insmod" > "$WORK/load"
    while read -r file; do
        name=$(basename "$file" .xz)
        case $file in
            *.xz) xz -dc "$ROOT$file" > "$folder/$n-$name" ;;
            *) cp "$ROOT$file" "$folder/$n-$name" ;;
        esac
        n=$((n + 1))
    done < "$WORK/load"
}
load modules 10 $MODULES
load vduse 50 $VDUSE
load vhost 50 $VHOST
rm -r "$ROOT/usr/lib/modules"

blkio=$(cd "$ROOT" && find usr/lib -name block-blkio.so) # where QEMU's tools look for it
for program in usr/bin/qemu-system-x86_64 usr/bin/dpdk-testpmd usr/bin/qemu-img usr/bin/fio usr/sbin/mkfs.ext4 usr/sbin/nvme usr/bin/lspci \
    usr/sbin/vdpa usr/bin/qemu-storage-daemon "$blkio"; do
    chroot "$ROOT" /lib64/ld-linux-x86-64.so.2 --list "/$program" | grep 'not found' && fail "$program misses libraries"
done
sync -f "$ROOT" 2>/dev/null || true
mv -T "$ROOT" "$DIR"
rm -r "$WORK"
