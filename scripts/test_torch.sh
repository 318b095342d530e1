#!/bin/sh
# Run the test suite with another PyTorch, in an environment of its own, and write the row of
# docs/compatibility.md.
#
#   TORCH=2.1.2      the release, as PyPI has it (a wheel with CUDA, 2 to 3 GB; it runs on a CPU)
#   PYTHON=...       the interpreter; torch 2.0 to 2.2 need 3.10 or 3.11
#   MMCV=yes|no      whether to compile MMCV and run the tests that need MMDetection; by default
#                    for torch 2.1, the last release with prebuilt wheels of MMCV 2.1, and from 2.8
#   VENV=...         where the environment is, .venv-torch-$TORCH by default
#
# Arguments are those of pytest; with any, the row is not written.
set -eu

cd "$(dirname -- "$0")/.."
TORCH=${TORCH:?'set TORCH, for example make test-torch TORCH=2.1.2'}
PYTHON=${PYTHON:-python3}
VENV=${VENV:-.venv-torch-$TORCH}
PIP="$VENV/bin/python -m pip --disable-pip-version-check --no-input"
CONSTRAINTS=$VENV/constraints.txt
# shellcheck source=scripts/compiler.sh
. scripts/compiler.sh

case $TORCH in
2.[0-2].* | 2.[0-2]) OLD=yes ;;
*) OLD=no ;;
esac
case $TORCH in
2.[02-7].* | 2.[02-7]) MMCV=${MMCV:-no} ;;
*) MMCV=${MMCV:-yes} ;;
esac

constraints() {
    echo "torch==$TORCH"
    if [ "$OLD" = yes ]; then
        # Those releases were built with NumPy 1, and these are the last of OpenCV that work with it.
        echo 'numpy<2'
        echo 'opencv-python-headless<4.12'
        grep -E '^(mmengine|mmcv|mmdet|ninja|setuptools|wheel)==' requirements/constraints.txt
    else
        grep -vE '^(torch|triton)==' requirements/constraints.txt
    fi
}

if [ ! -e "$VENV/.done-$MMCV" ]; then
    [ -e "$VENV" ] || "$PYTHON" -m venv "$VENV"
    constraints >"$CONSTRAINTS"
    $PIP install -c "$CONSTRAINTS" torch setuptools wheel ninja packaging
    $PIP install -c "$CONSTRAINTS" -r requirements/common.txt
    # Without dependencies: they ask for opencv-python, which is the same library with windows.
    $PIP install -c "$CONSTRAINTS" --no-deps mmengine
    if [ "$MMCV" = yes ]; then
        (
            fast_compiler "$(cd "$VENV" && pwd)/cxx" "$VENV/bin/python"
            # pip's cache has one wheel for each version of MMCV, whatever PyTorch it was built with.
            MMCV_WITH_OPS=1 $PIP install -c "$CONSTRAINTS" --no-cache-dir --no-deps --no-build-isolation mmcv
        )
        rm -rf "$VENV/cxx"
        $PIP install -c "$CONSTRAINTS" --no-deps mmdet
    fi
    touch "$VENV/.done-$MMCV"
fi

if [ "$MMCV" = yes ]; then
    WHAT=tests
else
    WHAT='tests/clipping tests/engine tests/test_compat.py tests/test_install.py tests/test_layers.py'
fi
REPORT=$VENV/report.xml
# shellcheck disable=SC2086
"$VENV/bin/python" -m pytest -n 2 -rs --junitxml="$REPORT" $WHAT "$@" && status=0 || status=$?
if [ $# -eq 0 ]; then
    "$VENV/bin/python" tools/dev/compatibility.py "$REPORT" --tests "$WHAT"
fi
exit "$status"
