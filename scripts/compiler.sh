# Read by setup.sh and test_torch.sh: makes the compilation of MMCV quicker, and possible on
# Python 3.13.

# fast_compiler DIR PYTHON: exports the variables. DIR, an absolute path, is for files of this build.
fast_compiler() {
    # As many compilers as cores; MMCV would start four.
    [ -n "${MAX_JOBS:-}" ] || MAX_JOBS=$(getconf _NPROCESSORS_ONLN 2>/dev/null) || MAX_JOBS=2
    export MAX_JOBS

    if "$2" -c 'import sys; sys.exit(sys.version_info < (3, 13))' 2>/dev/null; then
        # A sitecustomize.py with which MMCV's setup.py runs.
        export PYTHONPATH="$(pwd)/scripts/python313${PYTHONPATH:+:$PYTHONPATH}"
    fi

    # The rest needs GCC, and a path that build tools can pass on without quotes.
    case $1 in *[[:space:]]*) return ;; esac
    case $(${CXX:-c++} -v 2>&1 </dev/null) in *'gcc version'*) ;; *) return 0 ;; esac
    rm -rf "$1"
    mkdir -p "$1"
    cp scripts/cxx.sh "$1/g++"
    export GCLIP_CXX="${CXX:-c++}" GCLIP_CXX_DIR="$1" CXX="$1/g++"
    # Python's own flags ask for debugging information, which is more than half of the time.
    export GCLIP_CXX_FLAGS=-g0
    if "$2" -c 'import sys, torch
sys.exit(tuple(map(int, torch.__version__.split(".")[:2])) < (2, 14))' 2>/dev/null; then
        GCLIP_CXX_FLAGS="$GCLIP_CXX_FLAGS -std=c++20" # MMCV asks for C++17, the headers for C++20
    fi
    # PyTorch would put ccache in front of cxx.sh, which already calls it.
    export TORCH_NO_COMPILER_WRAPPER=1
    # pip builds in a new folder each time, and cxx.sh is a new file each time: neither may count.
    export CCACHE_BASEDIR="${TMPDIR:-/tmp}" CCACHE_NOHASHDIR=1 CCACHE_COMPILERCHECK='%compiler% -v'
}
