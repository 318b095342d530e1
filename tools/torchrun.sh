# shellcheck shell=bash
# Sourced by the dist_*.sh and slurm_*.sh scripts: which Python, and how torchrun is called.

TOOLS=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
export PYTHONPATH="$TOOLS/..${PYTHONPATH:+:$PYTHONPATH}"

# $PYTHON, else the active environment, else the one that `make setup` built.
if [ -z "${PYTHON:-}" ]; then
    PYTHON=python
    if [ -z "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ] && [ -x "$TOOLS/../.venv/bin/python" ]; then
        PYTHON=$TOOLS/../.venv/bin/python
    fi
fi

# torchrun_here PROCESSES TOOL ARGUMENTS...: this machine's share of a run.
torchrun_here() {
    local processes=$1 tool=$2
    shift 2
    local where=(--nnodes="${NNODES:-1}" --node-rank="${NODE_RANK:-0}"
        --master-addr="${MASTER_ADDR:-127.0.0.1}" --master-port="${PORT:-29500}")
    if [ "${NNODES:-1}" -eq 1 ] && [ -z "${PORT:-}" ]; then
        where=(--standalone) # finds a free port, so that two runs on a machine do not collide
    fi
    exec "$PYTHON" -m torch.distributed.run "${where[@]}" --nproc-per-node="$processes" \
        "$TOOLS/$tool" "$@"
}

# torchrun_on_slurm PARTITION JOB_NAME TOOL ARGUMENTS...: the whole run, one srun task a node.
torchrun_on_slurm() {
    local partition=$1 job_name=$2 tool=$3
    shift 3
    local gpus=${GPUS:-8} per_node=${GPUS_PER_NODE:-8} cpus=${CPUS_PER_TASK:-5}
    if [ "$gpus" -lt "$per_node" ]; then
        per_node=$gpus
    fi
    if [ $((gpus % per_node)) -ne 0 ]; then
        echo "$0: GPUS=$gpus is not a multiple of GPUS_PER_NODE=$per_node" >&2
        exit 2
    fi
    local nodes=$((gpus / per_node))
    # Only inside the job is it known which node is the first; the port follows from the job's
    # number, so that two jobs on a node do not collide.
    # shellcheck disable=SC2016
    local on_node='
        master=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
        port=${PORT:-$((20000 + SLURM_JOB_ID % 20000))}
        python=$1 nodes=$2 per_node=$3
        shift 3
        exec "$python" -m torch.distributed.run --nnodes="$nodes" --node-rank="$SLURM_NODEID" \
            --master-addr="$master" --master-port="$port" --nproc-per-node="$per_node" "$@"'
    # SRUN_ARGS is a list of words.
    # shellcheck disable=SC2086
    exec srun -p "$partition" --job-name="$job_name" --nodes="$nodes" --ntasks="$nodes" \
        --ntasks-per-node=1 --gres="gpu:$per_node" --cpus-per-task=$((cpus * per_node)) \
        --kill-on-bad-exit=1 ${SRUN_ARGS:-} \
        bash -c "$on_node" bash "$PYTHON" "$nodes" "$per_node" "$TOOLS/$tool" "$@"
}
