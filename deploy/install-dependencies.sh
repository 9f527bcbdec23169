#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# Installs what `make demo` or `make test` needs, and nothing that is there already.
#
#     deploy/install-dependencies.sh demo|test
#
# 1. Debian packages, by apt, only those missing. No recommended packages, and no service is
#    started: libvirt-daemon without libvirt-daemon-system brings programs, not units.
# 2. A guest kernel: Debian's cloud kernel, downloaded and unpacked under build/kernel. It is not
#    installed: the machine's own boot files stay as they are.
# 3. For the tests, the guest's qemu-guest-agent: its package, unpacked under build/guest-agent.
# 4. A virtualenv in .venv with this project in it (editable).
#
# Each step leaves a stamp keyed on what it was made from, so a second run only compares.
# With nothing missing it needs neither root nor a network.
#
# Who must be able to read it: started by root, the demo runs as an unprivileged user. So the
# virtualenv is built on a Python which others can execute (a pyenv below /root is not), and if
# this checkout lies below a directory that others cannot enter (again /root), the virtualenv is
# put in /var/cache/replicator and .venv is a symbolic link to it. A virtualenv that was made in
# another way is made anew. The packages stay in the checkout; the demo hands its user a copy.

set -euo pipefail

demo_packages=(
    gcc libc6-dev python3-dev python3-venv pkg-config libvirt-dev # to build libvirt-python
    libvirt-daemon libvirt-daemon-driver-qemu libvirt-clients     # the private libvirtd
    qemu-system-x86 qemu-utils                                    # the guest and its disks
    e2fsprogs busybox-static cpio                                 # the guest's initramfs
)
test_packages=(
    "${demo_packages[@]}"
    nbdkit libnbd-bin fio # other people's NBD servers and clients, to be checked against
    xfsprogs              # a second guest filesystem on replicas
)
kernel_metapackage=linux-image-cloud-amd64
guest_modules='virtio_ring virtio virtio_pci_modern_dev virtio_pci_legacy_dev virtio_pci virtio_blk virtio_console'
python_minimum='3, 11'

repository=$(cd -- "$(dirname -- "$0")/.." && pwd -P)
venv=${VENV:-$repository/.venv}
kernel=${KERNEL_DIR:-$repository/build/kernel}
guest_agent=$(dirname -- "$kernel")/guest-agent

say() { printf '%s\n' "$*" >&2; }
fail() { say "error: $*"; exit 2; }

# ---- Debian packages ---------------------------------------------------------------------------

missing_of() {
    local package
    for package in "$@"; do
        # One line per architecture. dpkg also knows packages that are "not-installed".
        dpkg-query -W -f '${db:Status-Status}\n' -- "$package" 2>/dev/null | grep -qx installed ||
            printf '%s ' "$package"
    done
}

updated=no
update_lists_once() {
    [[ $updated == yes ]] || apt-get update -q
    updated=yes
}

install_packages() {
    command -v dpkg-query >/dev/null || fail "this is not a Debian system; install by hand what" \
        "is named $* in Debian, and unpack a kernel with virtio and ext4 into $kernel"
    local missing
    read -ra missing <<<"$(missing_of "$@")"
    ((${#missing[@]})) || return 0
    ((EUID == 0)) || fail "packages are missing; as root, run: apt-get install ${missing[*]}"
    say "installing ${missing[*]}"
    update_lists_once
    # SYSTEMD_OFFLINE makes `systemctl start` in maintainer scripts a no-op.
    DEBIAN_FRONTEND=noninteractive SYSTEMD_OFFLINE=1 \
        apt-get install -q -y --no-install-recommends -- "${missing[@]}"
}

# ---- the guest's kernel ------------------------------------------------------------------------

install_kernel() {
    [[ -s $kernel/stamp && $(<"$kernel/stamp") == "$kernel_metapackage $guest_modules" ]] && return 0
    [[ $(dpkg --print-architecture) == amd64 ]] ||
        fail "the demo's guest is an amd64 one; this machine is $(dpkg --print-architecture)"
    ((EUID == 0)) && update_lists_once
    local package unpacked=$kernel.new
    package=$(apt-cache depends --important "$kernel_metapackage" |
        sed -n 's/^ *Depends: \(linux-image-.*-cloud-amd64\)$/\1/p' | head -n 1)
    [[ $package ]] || fail "apt knows no $kernel_metapackage; as root, run: apt-get update"
    say "downloading $package (unpacked under $kernel, not installed)"
    rm -rf -- "$unpacked"
    mkdir -p -- "$unpacked/deb"
    # As root, apt downloads as user _apt where it can and says so where it cannot: not a fault.
    (cd -- "$unpacked/deb" && apt-get download -q -o APT::Sandbox::User=root "$package")
    dpkg-deb -x "$unpacked"/deb/*.deb "$unpacked/all"
    # Some hundred megabytes, of which the guest needs ten.
    local kept=(-path './boot/vmlinuz-*' -o -name modules.builtin) module
    for module in $guest_modules; do kept+=(-o -name "$module.ko*"); done
    (cd -- "$unpacked/all" && find . -type f \( "${kept[@]}" \) -exec cp --parents -t .. {} +)
    rm -rf -- "$unpacked/all"
    compgen -G "$unpacked/boot/vmlinuz-*" >/dev/null || fail "$package holds no /boot/vmlinuz"
    rm -rf -- "$unpacked/deb"
    chmod -R a+rX -- "$unpacked"
    printf '%s' "$kernel_metapackage $guest_modules" >"$unpacked/stamp"
    rm -rf -- "$kernel"
    mv -T -- "$unpacked" "$kernel"
}

# ---- the guest's agent -------------------------------------------------------------------------

install_guest_agent() {
    [[ -s $guest_agent/qemu-ga && -s $guest_agent/stamp ]] && return 0
    ((EUID == 0)) && update_lists_once
    local unpacked=$guest_agent.new
    say "downloading qemu-guest-agent (unpacked under $guest_agent, not installed)"
    rm -rf -- "$unpacked"
    mkdir -p -- "$unpacked/deb"
    (cd -- "$unpacked/deb" && apt-get download -q -o APT::Sandbox::User=root qemu-guest-agent)
    dpkg-deb -x "$unpacked"/deb/*.deb "$unpacked/all"
    cp -- "$unpacked/all/usr/sbin/qemu-ga" "$unpacked/qemu-ga"
    # The guest gets the libraries of this machine.
    ldd "$unpacked/qemu-ga" | grep -q 'not found' &&
        fail "qemu-ga misses libraries: $(ldd "$unpacked/qemu-ga" | grep 'not found')"
    rm -rf -- "$unpacked/deb" "$unpacked/all"
    chmod -R a+rX -- "$unpacked"
    echo qemu-guest-agent >"$unpacked/stamp"
    rm -rf -- "$guest_agent"
    mv -T -- "$unpacked" "$guest_agent"
}

# ---- the virtualenv ----------------------------------------------------------------------------

others_can_enter() { # PATH: may any user pass through each directory above it, and into it?
    local path=$1
    while :; do
        [[ $(stat -c %A -- "$path") == *[xt] ]] || return 1
        [[ $path == / ]] && return 0
        path=$(dirname -- "$path")
    done
}

python_is_fit() { # can make virtualenvs, can build C extensions, is new enough
    "$1" -c "import sys, sysconfig, os, venv, ensurepip
sys.exit(sys.version_info < ($python_minimum) or
    not os.path.exists(sysconfig.get_path('include') + '/Python.h'))" 2>/dev/null
}

choose_python() {
    local python second_best=
    for python in /usr/bin/python3 "$(command -v python3 || true)"; do
        [[ -x $python ]] && python_is_fit "$python" || continue
        python=$("$python" -c 'import os, sys; print(os.path.realpath(sys.executable))')
        if ((EUID != 0)) || others_can_enter "$python"; then
            echo "$python" && return 0
        fi
        second_best=${second_best:-$python}
    done
    [[ $second_best ]] || fail "no Python of version ${python_minimum/, /.} or newer with venv and headers found"
    say "warning: only root can execute $second_best, so the demo cannot run as another user"
    echo "$second_best"
}

place_venv() { # leaves $venv a directory, or a link to one, that others can enter
    if ((EUID != 0)) || others_can_enter "$(dirname -- "$venv")"; then
        return 0
    fi
    local home
    home=/var/cache/replicator/venv-$(printf '%s' "$venv" | sha256sum | cut -c 1-12)
    mkdir -p -m 0755 -- /var/cache/replicator "$home"
    [[ $(readlink -- "$venv" || true) == "$home" ]] && return 0
    say "others cannot enter $(dirname -- "$venv"): putting the virtualenv in $home"
    rm -rf -- "$venv"
    ln -sT -- "$home" "$venv"
}

install_venv() { # EXTRAS
    local extras=$1 python key have
    python=$(choose_python)
    key="$repository $python $("$python" -V) $(sha256sum <"$repository/pyproject.toml" | cut -c 1-16)"
    have=$(cat -- "$venv/stamp" 2>/dev/null || true)
    # What was made for the tests serves the demo too.
    [[ $have == "$extras $key" || $have == "libvirt,dev $key" ]] && return 0
    place_venv
    # The same Python: pip brings it up to date. Another one, or half a virtualenv: from scratch.
    if ! [[ -x $venv/bin/pip && $(realpath -- "$venv/bin/python") == "$python" ]]; then
        say "making the virtualenv $venv on $python"
        "$python" -m venv --clear "$(realpath -- "$venv")" # venv itself refuses a link
    fi
    rm -f -- "$venv/stamp"
    say "installing replicator[$extras] into $venv"
    (umask 022 && "$venv/bin/python" -m pip install -q --disable-pip-version-check \
        --root-user-action ignore -e "$repository[$extras]")
    printf '%s' "$extras $key" >"$venv/stamp"
}

umask 022
case ${1-} in
demo)
    install_packages "${demo_packages[@]}"
    install_kernel
    install_venv libvirt
    ;;
test)
    install_packages "${test_packages[@]}"
    install_kernel
    install_guest_agent
    install_venv libvirt,dev
    ;;
*) fail "usage: ${0##*/} demo|test" ;;
esac
