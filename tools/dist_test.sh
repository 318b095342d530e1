#!/usr/bin/env bash
# Evaluate a checkpoint with several processes; see dist_train.sh.
#
#   tools/dist_test.sh CONFIG CHECKPOINT GPUS [any flag of tools/test.py]
set -euo pipefail

if [ $# -lt 3 ]; then
    echo "usage: $0 CONFIG CHECKPOINT GPUS [flags of tools/test.py]" >&2
    exit 2
fi
CONFIG=$1
CHECKPOINT=$2
GPUS=$3
shift 3

. "$(dirname "$0")/torchrun.sh"
torchrun_here "$GPUS" test.py "$CONFIG" "$CHECKPOINT" --launcher pytorch "$@"
