#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# The demo and the tests of QEMU and libvirt, on another Debian than this machine's.
#
#     tests/matrix.sh [SUITE ...]        trixie, if none is named; sid informs, and fails nothing
#
# Each suite gets a root of its own under build/matrix (MATRIX_DIR), made once by mmdebstrap from the
# mirror that this machine's apt uses, and a clean clone of HEAD in it: what is not committed is not
# tried. The clone runs the README's own commands, so what it needs it installs itself. Mounts live in
# a namespace of their own and are gone when this ends, however it ends.
#
# Wanted: root, git, 4 GiB of room, a network for packages.

set -euo pipefail

repository=$(cd -- "$(dirname -- "$0")/.." && pwd -P)
roots=${MATRIX_DIR:-$repository/build/matrix}
packages=git,make,python3,python3-venv,ca-certificates,iproute2,procps
informing=(sid)

say() { printf '%s\n' "$*" >&2; }
fail() { say "error: $*"; exit 2; }

mirror() { # of this machine's apt
    apt-get indextargets --format '$(REPO_URI) $(RELEASE) $(ORIGIN)' 2>/dev/null |
        awk '$3 == "Debian" && $1 !~ /security/ { print $1; exit }'
}

make_root() { # SUITE ROOT
    local suite=$1 root=$2 options=()
    [[ -e $root/stamp ]] && return 0
    rm -rf -- "$root"
    # A mirror may be a snapshot, and unstable's lists are then past their date.
    [[ $suite == sid ]] && options+=(--aptopt='Acquire::Check-Valid-Until "false"')
    say "making a root of $suite"
    mmdebstrap --quiet --variant=minbase --include="$packages" "${options[@]}" \
        "$suite" "$root" "$(mirror)"
    touch -- "$root/stamp"
}

take_over() { # FILE-OR-FOLDER ROOT: how this machine reaches its network
    [[ -e $1 ]] || return 0
    mkdir -p -- "$2$(dirname -- "$1")"
    cp -aL --no-target-directory -- "$1" "$2$1"
}

try() { # SUITE
    local suite=$1 root=$roots/$1 each
    make_root "$suite" "$root"
    for each in /etc/resolv.conf /etc/hosts /etc/pip.conf /etc/ssl/certs /etc/apt/apt.conf.d/99*; do
        take_over "$each" "$root"
    done
    rm -rf -- "$root/srv/replicator"
    git clone -q -- "$repository" "$root/srv/replicator"
    cat >"$root/srv/try.sh" <<'INSIDE'
set -e
cd /srv/replicator
make demo
make test PYTEST_ARGS='tests/qemu tests/libvirt'
printf 'tried with QEMU %s, libvirt %s, %s\n' \
    "$(qemu-system-x86_64 --version | awk 'NR == 1 { print $4 }')" \
    "$(libvirtd --version | awk '{ print $NF }')" "$(.venv/bin/python -V)"
INSIDE
    unshare --mount --propagation private /bin/bash -euc '
        for each in proc sys dev dev/pts dev/shm; do mount --rbind "/$each" "$1/$each"; done
        exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TERM=dumb LANG=C.UTF-8 \
            ${PIP_CERT:+"PIP_CERT=$PIP_CERT"} ${SSL_CERT_FILE:+"SSL_CERT_FILE=$SSL_CERT_FILE"} \
            chroot "$1" /bin/bash /srv/try.sh
    ' matrix "$root"
}

((EUID == 0)) || fail "a root of another Debian is made by root"
command -v mmdebstrap >/dev/null || apt-get install -qy --no-install-recommends mmdebstrap >&2
[[ $(mirror) ]] || fail "this machine's apt names no mirror of Debian; run apt-get update first"
mkdir -p -- "$roots"
failed=()
for suite in "${@:-trixie}"; do
    say "== $suite"
    (try "$suite") || failed+=("$suite")
done
for suite in "${failed[@]}"; do
    say "== $suite does not pass"
    [[ " ${informing[*]} " == *" $suite "* ]] || status=1
done
exit "${status:-0}"
