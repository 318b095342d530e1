#!/bin/sh
# The C++ compiler of the set-up: it adds flags, reads the headers of PyTorch once, and asks ccache
# first.
#
# Each of the 77 files of MMCV includes torch/types.h, and reading it is most of what compiling one
# takes. The first call that compiles a file therefore precompiles the header, with the flags of that
# call. GCC leaves a precompiled header out that does not fit, so no file comes out different.
#
#   GCLIP_CXX=g++         the compiler
#   GCLIP_CXX_FLAGS=-g0   put after the flags of each file
#   GCLIP_CXX_DIR=DIR     a folder of this build alone, for the precompiled header
set -eu

object=
source=
for argument in "$@"; do
    case $argument in
    -c) object=yes ;;
    -E | -M | -MM) object= && break ;; # ccache preprocesses by itself
    *.cpp) source=$argument ;;
    esac
done
if [ -z "$object" ] || [ -z "$source" ]; then
    exec $GCLIP_CXX "$@"
fi

# ccache calls this script again, for what it does not have.
if [ -z "${GCLIP_CXX_MISSED:-}" ]; then
    # shellcheck disable=SC2086
    set -- "$@" $GCLIP_CXX_FLAGS
    export GCLIP_CXX_MISSED=yes
    if command -v ccache >/dev/null 2>&1; then
        exec ccache "$0" "$@"
    fi
fi

header=$GCLIP_CXX_DIR/headers.h
precompile() {
    # The flags without the file that they compile, and where its object and dependencies go.
    count=$#
    skip=
    while [ "$count" -gt 0 ]; do
        count=$((count - 1))
        case $skip:$1 in
        yes:*) skip= ;;
        :-c | :-MMD | :-MD | :*.cpp) ;;
        :-o | :-MF | :-MT | :-MQ) skip=yes ;;
        *) set -- "$@" "$1" ;;
        esac
        shift
    done
    $GCLIP_CXX "$@" -x c++-header "$header" -o "$header.new" >/dev/null 2>&1 || return 1
    mv "$header.new" "$header.gch"
}

if mkdir "$GCLIP_CXX_DIR/started" 2>/dev/null; then
    echo '#include <torch/types.h>' >"$header"
    precompile "$@" || :
    : >"$GCLIP_CXX_DIR/done"
fi
# Ten minutes at most, on a busy machine: without the precompiled header a file takes longer, nothing else.
waited=0
while [ ! -e "$GCLIP_CXX_DIR/done" ] && [ "$waited" -lt 600 ]; do
    sleep 1
    waited=$((waited + 1))
done
if [ -e "$header.gch" ]; then
    exec $GCLIP_CXX -include "$header" "$@"
fi
exec $GCLIP_CXX "$@"
