"""Print the files of gclip_mm/clipping that run in a step, from ``optimizer.step`` to the record.

    python tools/dev/count_visits.py

A NormClip, an AGC and a ValueClip step are followed on a CPU, with the compiled (Numba) path and
with the torch path, under an SGD that is not fused, when tables and caches have been made. Only the
public interface is used, so that ``PYTHONPATH=<another checkout>`` measures that one.

Columns: a file's place in the order of first calls, how many calls of its functions there were, and
its name. A *visit* begins whenever a call enters another file than the call before it.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any

# Last, so that PYTHONPATH may name another checkout.
sys.path.append(str(Path(__file__).resolve().parents[2]))

CASES: dict[str, dict[str, Any]] = {
    'NormClip': dict(type='NormClip', max_norm=0.1),
    'AGC': dict(type='AGC', clip_factor=0.01),
    'ValueClip': dict(type='ValueClip', clip_value=0.1),
}
PATHS = {'compiled': '1', 'torch': '0'}


class CallLog:
    """Logs the calls of functions that are defined in a folder.

    Attributes:
        files: the file of each call, in order, relative to the folder.
    """

    def __init__(self, folder: Path) -> None:
        self._prefix = f'{folder}{os.sep}'
        self.files: list[str] = []
        self._active = False

    def start(self) -> None:
        self._active = True
        sys.setprofile(self._on_event)

    def stop(self, *_: Any) -> None:
        """End the log; takes arguments so that it can be a callback."""
        self._active = False
        sys.setprofile(None)

    def _on_event(self, frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        if not self._active or event != 'call' or not code.co_filename.startswith(self._prefix):
            return
        # Python 3.12 inlines comprehensions; older ones call them.
        if code.co_name not in ('<listcomp>', '<dictcomp>', '<setcomp>', '<genexpr>'):
            self.files.append(code.co_filename[len(self._prefix) :])


def follow(clip_grad: dict[str, Any]) -> list[str]:
    """The file of each call in a step that clips, after two steps to warm up."""
    import torch
    from torch import nn

    from gclip_mm import clipping

    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Linear(8, 8), nn.Linear(8, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    log = CallLog(Path(clipping.__file__).parent)
    # The record marks the end of clipping; what follows is the work of the optimizer.
    engine = clipping.GradClipEngine(optimizer, clip_grad, model=model, on_record=log.stop)
    for step in range(3):
        for param in model.parameters():
            param.grad = torch.randn_like(param)
        if step == 2:
            log.start()
        optimizer.step()
    log.stop()
    assert engine.stats()['clip_fraction'] > 0
    return log.files


def print_case(case: str, path: str) -> None:
    """Follow one step on the path that GCLIP_NUMBA has chosen and print its files."""
    files = follow(CASES[case])
    calls = Counter(files)
    visits = sum(a != b for a, b in zip(files, [None, *files], strict=False))
    print(f'{case}, {path}: {len(calls)} files, {visits} visits, {len(files)} calls')
    for place, (name, count) in enumerate(calls.items(), 1):
        print(f'{place:6} {count:6}  {name}')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--case', choices=CASES, help='one rule only, on the path of GCLIP_NUMBA')
    args = parser.parse_args()
    if args.case:
        print_case(args.case, 'torch' if os.environ.get('GCLIP_NUMBA') == '0' else 'compiled')
        return
    for case in CASES:
        for switch in PATHS.values():
            # The package reads the variable once a process.
            env = {**os.environ, 'GCLIP_NUMBA': switch, 'PYTHONWARNINGS': 'ignore'}
            command = [sys.executable, __file__, '--case', case]
            subprocess.run(command, env=env, check=True)


if __name__ == '__main__':
    main()
