#!/usr/bin/env bash
# Tests the Cython rooms in the builds that nobody ships: with line tracing and asserts, and with
# the address and undefined-behaviour sanitizers. Each in a copy of the tree, so that the one in
# use stays as it is. Root, as the rooms' tests want.
set -euo pipefail
cd "$(dirname "$0")/.."

python=$PWD/.venv/bin/python
copies=$(mktemp -d /var/tmp/hct-builds-XXXXXX)
trap 'rm -rf "$copies"' EXIT

rooms=(pump blockio process vsock frame ttrpc tap)
tests=()
for tier in unit integration; do
    for room in "${rooms[@]}"; do
        [[ ! -f tests/$tier/test_$room.py ]] || tests+=("tests/$tier/test_$room.py")
    done
done

# test_build NAME BUILD_SETTING [SETTING_OF_THE_RUN…]
test_build() {
    local name=$1 setting=$2
    shift 2
    echo "build: $name ($setting)"
    mkdir "$copies/$name"
    git ls-files -z --cached --others --exclude-standard | tar -c --null --ignore-failed-read -T - |
        tar -x -C "$copies/$name"
    (
        cd "$copies/$name"
        env "$setting" "$python" setup.py -q build_ext --inplace
        env PYTHONPATH="$PWD" "$@" "$python" -m pytest -q -p no:cacheprovider "${tests[@]}"
    )
}

test_build debug HYPERCORE_DEBUG=1
# Python is not built with the sanitizers, so their runtime must come before it.
test_build sanitized HYPERCORE_SANITIZE=address,undefined \
    LD_PRELOAD="$(gcc -print-file-name=libasan.so) $(gcc -print-file-name=libubsan.so)" \
    ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1
