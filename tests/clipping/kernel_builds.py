"""Compiles the kernels for GPUs that need not be there, and prints what is to be seen in them.

Run by ``test_kernels.py`` in a process of its own, since Triton is imported there as it is and not
as its interpreter. A line of JSON: for each kernel, architecture and type, the size of the binary
and the atomic operations in it.
"""

from __future__ import annotations

import json
import re

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from gclip_mm.clipping.kernels import launch

#: Turing, Ampere, Hopper.
ARCHITECTURES = (75, 80, 90)
ARGUMENTS = {
    '_measure': dict(
        pointers='*i64', items='*i64', partials='*fp64', arrived='*i32', norms='*fp64'
    ),
    '_scale': dict(pointers='*i64', items='*i64', coefs='*fp64'),
}


def build(name: str, architecture: int, dtype: torch.dtype) -> dict:
    source = ASTSource(
        fn=getattr(launch, name),
        signature=dict(**ARGUMENTS[name], DTYPE='constexpr', BLOCK='constexpr'),
        constexprs=dict(DTYPE=launch._TYPES[dtype], BLOCK=launch.BLOCK),
    )
    built = triton.compile(source, target=GPUTarget('cuda', architecture, 32))
    return dict(
        kernel=name,
        architecture=architecture,
        dtype=str(dtype),
        size=len(built.asm['cubin']),
        atomics=re.findall(r'\b((?:atom|red)\.\S+)', built.asm['ptx']),
    )


if __name__ == '__main__':
    print(
        json.dumps(
            [build(n, a, d) for n in ARGUMENTS for a in ARCHITECTURES for d in launch._TYPES]
        )
    )
