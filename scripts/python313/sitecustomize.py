"""Read by the Python that builds MMCV 2.1: `exec` in a function changes its locals, as before 3.13.

MMCV's setup.py reads its version that way, and fails without it from Python 3.13 on (PEP 667).
`scripts/compiler.sh` puts this folder on the path of the build, and of nothing else.
"""

import builtins
import sys

_exec = builtins.exec


def _exec_in_caller(source, globals=None, locals=None, /, **options):
    if globals is None and locals is None:
        caller = sys._getframe(1)
        globals, locals = caller.f_globals, caller.f_locals
    _exec(source, globals, locals, **options)


builtins.exec = _exec_in_caller
