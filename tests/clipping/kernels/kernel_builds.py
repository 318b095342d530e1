"""Compiles the kernels for several GPU architectures, without a GPU, and prints their properties.

``test_kernels.py`` runs this file in a separate process, with Triton's compiler and not its
interpreter. Prints one line of JSON: for each kernel, architecture and variant, the size of the
binary, its atomic operations, its operations in single precision, its operations that flush
subnormal numbers to 0, and the arguments that Triton does not specialize.
"""

from __future__ import annotations

import itertools
import json
import re
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from gclip_mm.clipping.kernels import decision_kernels, multi_tensor_kernels

#: Turing, Ampere, Hopper.
ARCHITECTURES = (75, 80, 90)
ARGUMENTS = {
    '_measure': dict(
        pointers='*i64',
        items='*i64',
        partials='*fp64',
        arrived='*i32',
        norms='*fp64',
        order='i64',
    ),
    '_scale': dict(pointers='*i64', items='*i64', coefs='*fp64'),
    '_clamp': dict(
        pointers='*i64',
        items='*i64',
        low='i32',
        high='i32',
        partials='*fp64',
        changed='*fp64',
        arrived='*i32',
        counts='*fp64',
        norms='*fp64',
    ),
}
#: Common arguments of all kernels that decide. Below, those of each rule. A float is passed as its
#: bits, an int64, which Triton types as int32 if the value is small.
COMMON = dict(
    norms='*fp64',
    count='i32',
    order='i64',
    scale='*fp32',
    scaler_inf='*fp32',
    fold='*fp32',
    record='*fp64',
)
KINDS = ('absolute', 'squares', 'largest', 'powers')
DECISIONS = {
    'norm_clip': dict(max_norm='i64', min_norm='i32'),
    'zclip': dict(
        seen='*i64',
        mean='*fp64',
        var='*fp64',
        alpha='i64',
        z_threshold='i64',
        warmup='i32',
        max_norm='i64',
    ),
    'autoclip': dict(history='*fp64', seen='*i64', window='i32', fraction='i64'),
}


def build(
    kernel: Any, signature: dict[str, str], constants: dict[str, Any], architecture: int
) -> dict:
    source = ASTSource(
        fn=kernel,
        signature={**signature, **dict.fromkeys(constants, 'constexpr')},
        constexprs=constants,
    )
    built = triton.compile(source, target=GPUTarget('cuda', architecture, 32))
    return dict(
        kernel=kernel.fn.__name__,
        architecture=architecture,
        variant=' '.join(map(str, constants.values())),
        size=len(built.asm['cubin']),
        atomics=re.findall(r'\b((?:atom|red)\.\S+)', built.asm['ptx']),
        single=sorted(set(re.findall(r'\b(?:mul|add|div|sqrt)\S*\.f32', built.asm['ptx']))),
        flushing=re.findall(r'\S+\.ftz\S*', built.asm['ptx']),
        plain=[param.name for param in kernel.params if param.do_not_specialize],
    )


def multi_tensor_builds() -> list[dict]:
    builds = []
    for name, arguments in ARGUMENTS.items():
        kinds = [dict(KIND=kind) for kind in KINDS] if name == '_measure' else [{}]
        for kind, dtype in itertools.product(kinds, multi_tensor_kernels._TYPES.values()):
            constants = {**kind, 'DTYPE': dtype, 'BLOCK': multi_tensor_kernels.BLOCK}
            kernel = getattr(multi_tensor_kernels, name)
            builds += [build(kernel, arguments, constants, a) for a in ARCHITECTURES]
    return builds


def decision_builds() -> list[dict]:
    """Each kernel in the variants that rules use, with and without a loss scale."""
    own = {
        'norm_clip': [dict(KIND=kind) for kind in KINDS],
        'zclip': [dict(KIND='squares', MODE=mode) for mode in ('reciprocal', 'mean', 'percentile')],
        'autoclip': [dict(KIND='squares')],
    }
    builds = []
    for name, arguments in DECISIONS.items():
        for variant, scaled in itertools.product(own[name], [False, True]):
            common = dict(HAS_SCALE=scaled, HAS_INF=scaled, BLOCK=decision_kernels.BLOCK)
            kernel = getattr(decision_kernels, name)
            signature = {**COMMON, **arguments}
            builds += [build(kernel, signature, {**variant, **common}, a) for a in ARCHITECTURES]
    return builds


if __name__ == '__main__':
    print(json.dumps(multi_tensor_builds() + decision_builds()))
