#!/usr/bin/env bash
# Makes a clone ready to build: the host's packages and the virtual environment. Does nothing
# that is done already, so it may run before every build. What hypercore needs at run time
# (containerd, guest assets) is `hypercore setup`'s, not this script's.
#
# usage: scripts/setup.sh            both
#        scripts/setup.sh packages   only the host's packages
#        scripts/setup.sh venv       only the virtual environment
#
# PYTHON=/path/to/python3 chooses the interpreter of a new environment.
set -euo pipefail
cd "$(dirname "$0")/.."

VENV=.venv

# Debian's and Ubuntu's names, for building and testing. What it takes to run a VM, `hypercore setup`
# finds or installs itself.
PACKAGES=(
    ca-certificates
    gcc
    libc6-dev
    make
    python3
    python3-dev
    python3-venv
    e2fsprogs      # tests: ext4 images
    erofs-utils    # tests: erofs images
    btrfs-progs    # tests: images that share blocks
    xfsprogs       # tests: the same
    nftables       # tests: other firewalls on the host
    iptables       # tests: the same
    dnsmasq-base   # tests: a DHCP server
    containernetworking-plugins  # tests: namespaces made by CNI
    mmdebstrap     # tests: a host with KVM
)

say() { printf 'setup: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

missing_packages() {
    local package status
    for package in "${PACKAGES[@]}"; do
        status=$(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null || true)
        [[ $status == installed ]] || printf '%s\n' "$package"
    done
}

install_packages() {
    if ! command -v dpkg-query >/dev/null; then
        say "this is no Debian or Ubuntu: install what these packages hold yourself: ${PACKAGES[*]}"
        return
    fi
    local missing
    mapfile -t missing < <(missing_packages)
    if [[ ${#missing[@]} == 0 ]]; then
        return
    fi
    local as_root=()
    if [[ $(id -u) != 0 ]]; then
        command -v sudo >/dev/null || die "not root, and these packages are missing: ${missing[*]}
       as root: apt-get install --no-install-recommends ${missing[*]}"
        as_root=(sudo)
    fi
    say "host packages: installing ${missing[*]}"
    "${as_root[@]}" apt-get -q update
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q install -y \
        --no-install-recommends -o DPkg::Lock::Timeout=300 "${missing[@]}"
}

# Prints why $1 cannot be the environment's interpreter; nothing if it can.
objection() {
    "$1" - 2>&1 <<'PY' || echo "it does not run"
import sys
from pathlib import Path

if sys.version_info < (3, 11):
    print("it is %d.%d, and 3.11 or newer is needed" % sys.version_info[:2])
    sys.exit()
try:
    import ensurepip, venv
except ImportError as exc:
    print(f"{exc} (package python3-venv)")
import sysconfig

if not Path(sysconfig.get_path("include"), "Python.h").exists():
    print("its headers are missing (package python3-dev)")
PY
}

# The system's interpreter first: its headers and its updates come from one place.
choose_python() {
    local candidate path why
    for candidate in ${PYTHON:-/usr/bin/python3 python3}; do
        path=$(command -v "$candidate" || true)
        if [[ -z $path ]]; then
            say "$candidate: not found"
            continue
        fi
        why=$(objection "$path")
        if [[ -z $why ]]; then
            echo "$path"
            return
        fi
        say "$path: $why"
    done
    die "no usable Python: install python3 (3.11 or newer), python3-venv and python3-dev, or set PYTHON"
}

make_venv() {
    local python wanted
    if [[ -e $VENV/bin/python && -n $(objection "$VENV/bin/python") ]]; then
        say "virtual environment: its interpreter is unusable now, making it anew"
        rm -rf "$VENV"
    fi
    if [[ ! -e $VENV/bin/python ]]; then
        python=$(choose_python)
        say "virtual environment: $VENV with $python ($("$python" -V))"
        "$python" -m venv "$VENV"
    fi
    exec 9>"$VENV/.build-lock"
    flock 9
    wanted=$(sha256sum pyproject.toml | cut -d' ' -f1)
    if [[ $(cat "$VENV/.installed" 2>/dev/null) == "$wanted" ]]; then
        return
    fi
    say "virtual environment: installing Python packages (a minute or two the first time)"
    local pip=("$VENV/bin/python" -m pip --disable-pip-version-check install --progress-bar off)
    # The build needs them in the environment: isolation would fetch them again for each build.
    "${pip[@]}" -q 'setuptools>=77' 'cython>=3.1,<4'
    "${pip[@]}" -q --no-build-isolation --config-settings editable_mode=compat -e '.[dev]'
    echo "$wanted" >"$VENV/.installed"
}

case ${1:-all} in
    packages) install_packages ;;
    venv) make_venv ;;
    all)
        install_packages
        make_venv
        ;;
    *) die "unknown step '$1'; one of: packages venv" ;;
esac
