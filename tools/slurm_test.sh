#!/usr/bin/env bash
# Evaluate a checkpoint on a Slurm cluster; see slurm_train.sh.
#
#   tools/slurm_test.sh PARTITION JOB_NAME CONFIG CHECKPOINT [any flag of tools/test.py]
set -euo pipefail

if [ $# -lt 4 ]; then
    echo "usage: $0 PARTITION JOB_NAME CONFIG CHECKPOINT [flags of tools/test.py]" >&2
    exit 2
fi
PARTITION=$1
JOB_NAME=$2
CONFIG=$3
CHECKPOINT=$4
shift 4

. "$(dirname "$0")/torchrun.sh"
torchrun_on_slurm "$PARTITION" "$JOB_NAME" \
    test.py "$CONFIG" "$CHECKPOINT" --launcher pytorch "$@"
