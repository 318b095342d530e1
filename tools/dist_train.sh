#!/usr/bin/env bash
# Train with several processes: one a GPU, or on a machine without one as many as you ask for.
#
#   tools/dist_train.sh CONFIG GPUS [any flag of tools/train.py]
#
# Several machines: run it on each, with NNODES, NODE_RANK, MASTER_ADDR and PORT (default 29500)
# set. On a single machine a free port is chosen, unless PORT is set.
set -euo pipefail

if [ $# -lt 2 ]; then
    echo "usage: $0 CONFIG GPUS [flags of tools/train.py]" >&2
    exit 2
fi
CONFIG=$1
GPUS=$2
shift 2

. "$(dirname "$0")/torchrun.sh"
torchrun_here "$GPUS" train.py "$CONFIG" --launcher pytorch "$@"
