#!/bin/sh
# Build the environment of the make targets, pinned by requirements/constraints.txt.
#
# Safe to run at any time: for a finished environment it takes a few milliseconds, an interrupted
# set-up resumes at the step where it stopped, and an environment with other pins is updated.
#
#   FAMILY=mm|onedl   upstream OpenMMLab packages, or the maintained forks
#   VENV=DIR          folder of the environment, relative to the repository
#   PYTHON=...        the interpreter to build it with
set -eu

cd "$(dirname -- "$0")/.."
FAMILY=${FAMILY:-mm}
VENV=${VENV:-.venv}
CONSTRAINTS=requirements/constraints.txt
STATE=$VENV/.setup
# shellcheck source=scripts/compiler.sh
. scripts/compiler.sh
LOCK=$VENV.lock

die() {
    echo "setup: $*" >&2
    exit 1
}

case $FAMILY in
mm)
    MMCV=mmcv
    MM_PACKAGES='mmengine mmdet'
    EXTRA_REQUIREMENTS=
    ;;
onedl)
    MMCV=onedl-mmcv
    MM_PACKAGES='onedl-mmengine onedl-mmdetection imaug imagecorruptions-imaug'
    EXTRA_REQUIREMENTS='-r requirements/onedl.txt'
    ;;
*) die "FAMILY is '$FAMILY'; it can be mm (upstream) or onedl (the maintained forks)" ;;
esac

# ---- Skip a finished set-up ---------------------------------------------------------------------
# The path of the checkout is part of the key: an environment that was moved or copied with its
# checkout would still import gclip_mm from the old path.
PINS="$FAMILY $(pwd) $(cat requirements/*.txt pyproject.toml scripts/setup.sh | cksum)"
is_done() { [ -f "$STATE/$1.done" ] && [ "$(cat "$STATE/$1.done")" = "$PINS" ]; }

python_version() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null; }

if is_done all && [ -x "$VENV/bin/python" ]; then
    if [ -z "${PYTHON:-}" ] || [ "$(python_version "$PYTHON")" = "$(python_version "$VENV/bin/python")" ]; then
        exit 0
    fi
fi

# ---- Check the requirements before any download -------------------------------------------------
python_is_supported() {
    "$1" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' >/dev/null 2>&1
}

if [ -n "${PYTHON:-}" ]; then
    set -- "$PYTHON"
else
    # A working environment of this script is kept, with its Python version.
    set -- "$VENV/bin/python" python3 python3.12 python3.11 python3.10 python3.13 python
fi
BASE=
seen=
for candidate in "$@"; do
    version=$(python_version "$candidate") || continue
    if python_is_supported "$candidate"; then
        BASE=$candidate
        break
    fi
    seen="$seen $candidate is $version,"
done
[ -n "$BASE" ] || die "needs Python 3.10 to 3.13, and found${seen:- none${PYTHON:+ at $PYTHON},}" \
    "so install one, or specify it: make setup PYTHON=/path/to/python3.11"

"$BASE" -c 'import venv, ensurepip' 2>/dev/null ||
    die "$BASE has no venv module; install it (Debian, Ubuntu: apt install python3-venv)"
"$BASE" -c '
import os, sys, sysconfig
sys.exit(not os.path.exists(os.path.join(sysconfig.get_paths()["include"], "Python.h")))' ||
    die "$BASE has no Python.h, which is needed to compile mmcv (Debian, Ubuntu: apt install python3-dev)"

if [ -z "${CXX:-}" ]; then
    for candidate in c++ g++ clang++; do
        if command -v "$candidate" >/dev/null 2>&1; then
            CXX=$candidate
            break
        fi
    done
fi
[ -n "${CXX:-}" ] ||
    die "needs a C++ compiler to build mmcv: none of c++, g++, clang++ is on PATH (Debian, Ubuntu: apt install g++)"
printf '#include <vector>\nint main() { return std::vector<int>().size(); }\n' |
    $CXX -std=c++17 -x c++ -o /dev/null - >/dev/null 2>&1 ||
    die "the C++ compiler '$CXX' cannot build a C++17 program; install a working one, or specify it with CXX=..."
export CXX
# setuptools links with the compiler that Python was built with, which may not be installed.
if [ -z "${CC:-}" ]; then
    for candidate in cc gcc clang; do
        if command -v "$candidate" >/dev/null 2>&1; then
            CC=$candidate
            export CC
            break
        fi
    done
fi

# ---- One set-up at a time -----------------------------------------------------------------------
told=
while ! mkdir "$LOCK" 2>/dev/null; do
    owner=$(cat "$LOCK/pid" 2>/dev/null || :)
    if [ -n "$owner" ] && ! kill -0 "$owner" 2>/dev/null; then
        rm -rf "$LOCK" # the process that held the lock was killed
        continue
    fi
    [ -n "$told" ] || echo "setup: waiting for the set-up that process ${owner:-?} is running ($LOCK)"
    told=yes
    sleep 2
done
echo $$ >"$LOCK/pid"
child=
trap 'if [ -n "$child" ]; then kill "$child" 2>/dev/null || :; fi; rm -rf "$LOCK"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# ---- The steps ----------------------------------------------------------------------------------
PY=$VENV/bin/python
# `python -m pip`, because the pip script's first line breaks when its path is long or has spaces.
PIP="$PY -m pip --disable-pip-version-check --no-input"
step=0

# run_step NAME TITLE COMMAND...: run COMMAND once per set of pins. A killed step may leave a partly
# written package that pip takes for complete, so the next run reinstalls the packages of that step.
run_step() {
    name=$1
    title=$2
    shift 2
    step=$((step + 1))
    if is_done "$name"; then
        return
    fi
    echo "setup: [$step/6] $title"
    again=
    if [ -e "$STATE/$name.started" ]; then
        again=--force-reinstall
    fi
    : >"$STATE/$name.started"
    # shellcheck disable=SC2086
    "$@" $again || die "step '$name' failed (see above); run the same command again to resume at this step"
    rm "$STATE/$name.started"
    echo "$PINS" >"$STATE/$name.done"
}

pip_install() {
    # shellcheck disable=SC2086
    $PIP install -c "$CONSTRAINTS" "$@"
}

# Compiling takes minutes and pip prints nothing meanwhile, so show the progress count of ninja.
pip_install_mmcv() {
    log=$STATE/mmcv.log
    (
        fast_compiler "$(cd "$STATE" && pwd)/cxx" "$PY"
        # shellcheck disable=SC2086
        exec $PIP install -v -c "$CONSTRAINTS" --no-deps --no-build-isolation "$@" "$MMCV"
    ) >"$log" 2>&1 &
    child=$!
    seconds=0
    shown=
    while kill -0 "$child" 2>/dev/null; do
        sleep 1
        seconds=$((seconds + 1))
        if [ $((seconds % 10)) -eq 0 ]; then
            count=$(sed -n 's,^ *\[\([0-9][0-9]*\)/\([0-9][0-9]*\)\].*,\1 of \2,p' "$log" | tail -n 1)
            if [ "$count" != "$shown" ] || [ $((seconds % 30)) -eq 0 ]; then
                echo "setup:       ${count:-0} files compiled, $seconds s"
            fi
            shown=$count
        fi
    done
    status=0
    wait "$child" || status=$?
    child=
    rm -rf "$STATE/cxx" # the compiled headers are some 400 MB
    if [ "$status" -ne 0 ]; then
        tail -n 30 "$log" >&2
        echo "setup: the full output is in $log" >&2
    fi
    return "$status"
}

# Environment variables that the make targets set for their commands.
ENVIRONMENT=$STATE/env

# mmcv compiles for the GPU that PyTorch detects, and this fails without the CUDA toolkit.
gpu_without_toolkit() {
    $PY -c '
import sys, torch
from torch.utils.cpp_extension import CUDA_HOME
sys.exit(not (torch.cuda.is_available() and CUDA_HOME is None))'
}

install_mmcv() {
    : >"$ENVIRONMENT"
    if gpu_without_toolkit; then
        echo 'setup:       there is a GPU but no CUDA toolkit (nvcc), so mmcv is built for the CPU and'
        echo '             the make targets use the CPU; with the toolkit, run make clean and the target again'
        echo CUDA_VISIBLE_DEVICES=-1 >"$ENVIRONMENT"
        export CUDA_VISIBLE_DEVICES=-1
    fi
    pip_install_mmcv "$@" || return
    # pip caches the compiled wheel by the version of mmcv alone, so after a change of PyTorch the
    # cached wheel was built against the old PyTorch, or without CUDA.
    if ! mmcv_fits 2>/dev/null; then
        echo 'setup:       the cached wheel was built for another PyTorch; compiling it again'
        $PIP cache remove "$(echo "$MMCV" | tr - _)*" >/dev/null 2>&1 || :
        pip_install_mmcv --force-reinstall || return
        mmcv_fits
    fi
}

mmcv_fits() {
    $PY -c '
import sys, torch
from mmcv.ops import get_compiling_cuda_version
sys.exit(torch.cuda.is_available() and get_compiling_cuda_version() == "not available")'
}

verify() {
    $PY -c '
import sys, cv2, mmcv, mmcv.ops, mmdet, mmengine, torch
print("setup: Python %d.%d.%d, torch %s, mmengine %s, mmcv %s, mmdet %s, OpenCV %s" % (
    *sys.version_info[:3], torch.__version__, mmengine.__version__, mmcv.__version__,
    mmdet.__version__, cv2.__version__))'
}

if [ -e "$VENV" ]; then
    [ -d "$STATE" ] || die "$VENV already exists and was not made by this script; move it away or choose VENV=..."
    if ! $PIP --version >/dev/null 2>&1 || [ "$(cat "$STATE/home")" != "$(pwd)" ] ||
        [ "$(python_version "$PY")" != "$(python_version "$BASE")" ]; then
        echo "setup: $VENV is incomplete, or made for another Python or another folder: rebuilding it"
        [ "$BASE" != "$PY" ] || BASE=$("$PY" -c 'import os, sys; print(os.path.realpath(sys.executable))')
        rm -rf "$VENV"
    fi
fi
if [ ! -e "$VENV" ]; then
    echo "setup: building $VENV with $("$BASE" -c 'import sys; print(sys.executable)')"
    mkdir -p "$STATE"
    pwd >"$STATE/home"
    "$BASE" -m venv "$VENV"
fi

run_step pip 'pip and the build tools' \
    pip_install pip setuptools wheel ninja packaging
run_step torch 'PyTorch (about 200 MB for a CPU, several GB with CUDA)' \
    pip_install torch
# shellcheck disable=SC2086
run_step common 'NumPy, SciPy, OpenCV, the test tools (Triton, if PyTorch did not install it: 200 MB)' \
    pip_install -r requirements/common.txt $EXTRA_REQUIREMENTS
# shellcheck disable=SC2086
run_step mm "$MM_PACKAGES" \
    pip_install --no-deps --no-build-isolation $MM_PACKAGES
run_step mmcv "$MMCV (compiles its C++ operators: 2 to 5 minutes the first time, then pip caches the wheel)" \
    install_mmcv
run_step gclip 'gclip_mm, editable' \
    pip_install --no-deps --no-build-isolation -e .
verify
echo "$PINS" >"$STATE/all.done"
