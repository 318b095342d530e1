#!/usr/bin/env bash
# Train on a Slurm cluster: one task a node, each running torchrun for its GPUs.
#
#   [GPUS=16] [GPUS_PER_NODE=8] [CPUS_PER_TASK=5] [SRUN_ARGS=...] [PORT=...] \
#       tools/slurm_train.sh PARTITION JOB_NAME CONFIG WORK_DIR [any flag of tools/train.py]
#
# GPUS is the number in all; CPUS_PER_TASK is the number of cores for each GPU.
set -euo pipefail

if [ $# -lt 4 ]; then
    echo "usage: $0 PARTITION JOB_NAME CONFIG WORK_DIR [flags of tools/train.py]" >&2
    exit 2
fi
PARTITION=$1
JOB_NAME=$2
CONFIG=$3
WORK_DIR=$4
shift 4

. "$(dirname "$0")/torchrun.sh"
torchrun_on_slurm "$PARTITION" "$JOB_NAME" \
    train.py "$CONFIG" --work-dir "$WORK_DIR" --launcher pytorch "$@"
