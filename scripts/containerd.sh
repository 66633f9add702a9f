#!/bin/sh
# Start hypercore's own containerd in the background, unless it runs; `stop` and `status` work too.
exec "$(dirname "$(readlink -f "$0")")/../bin/hypercore" containerd "${1:-start}"
