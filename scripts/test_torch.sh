#!/bin/sh
# Run the part of the test suite that applies to an older PyTorch, in an environment of its own.
#
#   TORCH=2.1.2      the release, as PyPI has it (a wheel with CUDA, 2 GB; it runs on a CPU)
#   PYTHON=...       the interpreter; torch 2.0 to 2.2 need 3.10 or 3.11
#   MMCV=no|yes      also compile MMCV and run the tests that need MMDetection (10 to 25 minutes);
#                    by default for torch 2.1, the last release with prebuilt wheels of MMCV 2.1
#
# Arguments are those of pytest.
set -eu

cd "$(dirname -- "$0")/.."
TORCH=${TORCH:?'set TORCH, for example make test-torch TORCH=2.1.2'}
PYTHON=${PYTHON:-python3}
VENV=.venv-torch-$TORCH
PIP="$VENV/bin/python -m pip --disable-pip-version-check --no-input"

case $TORCH in
2.[0-2].* | 2.[0-2])
    # Those releases were built with NumPy 1, and these are the last of OpenCV that work with it.
    OLD='numpy<2 opencv-python-headless<4.12'
    ;;
*) OLD='numpy opencv-python-headless' ;;
esac
case $TORCH in
2.1 | 2.1.*) MMCV=${MMCV:-yes} ;;
*) MMCV=${MMCV:-no} ;;
esac

if [ ! -e "$VENV/.done-$MMCV" ]; then
    [ -e "$VENV" ] || "$PYTHON" -m venv "$VENV"
    # shellcheck disable=SC2086
    $PIP install "torch==$TORCH" $OLD 'setuptools>=77,<82' wheel ninja packaging
    # MMEngine and MMDetection ask for opencv-python, which is the same library with windows.
    $PIP install --no-deps mmengine==0.10.7
    # shellcheck disable=SC2086
    $PIP install addict matplotlib pyyaml rich termcolor yapf numba tensorboard \
        hypothesis pytest pytest-timeout pytest-xdist $OLD "torch==$TORCH"
    if [ "$MMCV" = yes ]; then
        # pip's cache has one wheel for each version of MMCV, whatever PyTorch it was built with.
        MMCV_WITH_OPS=1 $PIP install --no-cache-dir --no-deps --no-build-isolation mmcv==2.1.0
        $PIP install --no-deps mmdet==3.3.0
        # shellcheck disable=SC2086
        $PIP install pycocotools scipy shapely six terminaltables tqdm pillow \
            h5py scikit-image scikit-learn $OLD "torch==$TORCH"
    fi
    touch "$VENV/.done-$MMCV"
fi

if [ "$MMCV" = yes ]; then
    WHAT=tests
else
    WHAT='tests/clipping tests/engine tests/test_compat.py tests/test_install.py tests/test_layers.py'
fi
# shellcheck disable=SC2086
exec "$VENV/bin/python" -m pytest -n 2 -rs $WHAT "$@"
