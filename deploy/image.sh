#!/bin/sh
# Builds the image of the pods that --node starts, without a registry and without a daemon.
#
#   deploy/image.sh root      make or refresh the root file system .cache/image/root
#   deploy/image.sh archive   the same, and write it as an OCI archive: dist/kproxylat-VERSION-ARCHITECTURE.tar
#
# Root only. ARCHITECTURE=arm64 builds for arm64 on x86-64, in .cache/image/root-arm64. It takes qemu-user-static and
# arch-test (make image ARCHITECTURE=arm64 installs them), binfmt_misc, where qemu-user-static registers itself, and 45
# minutes on 2 busy cores.
set -eu
cd "$(dirname "$0")/.."
suite=forky # The first Debian with bpftrace 0.25 or later.
own=$(dpkg --print-architecture)
architecture=${ARCHITECTURE:-$own}
root=.cache/image/root
[ "$architecture" = "$own" ] || root=$root-$architecture
version=$(sed -n 's/^__version__ = "\(.*\)"/\1/p' kproxylat/__init__.py)

if ! cmp --silent deploy/packages.txt "$root/srv/packages.txt"; then
    rm -rf --one-file-system "$root" "$root.part"
    mkdir -p "$root.part"
    # A mirror that lags behind has an expired list, which is still signed.
    mmdebstrap --quiet --variant=minbase --architectures="$architecture" --aptopt='Acquire::Check-Valid-Until "false"' \
        --aptopt='APT::Install-Recommends "false"' --include="$(paste -sd, deploy/packages.txt)" "$suite" "$root.part"
    cp deploy/packages.txt "$root.part/srv/packages.txt"
    mv "$root.part" "$root"
fi

package=$root/usr/lib/python3/dist-packages/kproxylat
# Pods may run from it just now: nothing is replaced by the same.
if ! diff --recursive --brief --exclude=__pycache__ --exclude=templates kproxylat "$package" >/dev/null 2>&1 ||
    ! diff --recursive --brief templates "$package/templates" >/dev/null 2>&1; then
    rm -rf "$package"
    cp -r kproxylat "$package"
    cp -r templates "$package/templates"
    find "$package" -name __pycache__ -prune -exec rm -rf {} +
    mkdir -p "$root/run/kproxylat" "$root/sys/kernel/tracing" "$root/usr/lib/modules"
    # The root file system is read-only in a pod: Python would compile everything at each start.
    chroot "$root" python3 -m compileall -q /usr/lib/python3/dist-packages/kproxylat
fi

[ "${1:-archive}" = archive ] || exit 0
mkdir -p dist
archive=dist/kproxylat-$version-$architecture.tar
container=$(buildah from scratch)
trap 'buildah rm "$container" >/dev/null' EXIT
cp -a "$root/." "$(buildah mount "$container")"
buildah config --arch "$architecture" --env PYTHONDONTWRITEBYTECODE=1 --user 0 \
    --entrypoint '["python3", "-m", "kproxylat"]' \
    --label org.opencontainers.image.version="$version" "$container"
rm -f "$archive"
buildah commit --quiet --disable-compression=false "$container" "oci-archive:$archive:kproxylat:$version"
echo "$archive"
