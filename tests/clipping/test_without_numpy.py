"""Clipping works without NumPy, as torch does; checked in a process that cannot import NumPy."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

PROGRAM = """
import sys, warnings
warnings.simplefilter('ignore')
import torch
# torch is loaded; from here on, NumPy cannot be imported.
for name in [n for n in sys.modules if n == 'numpy' or n.startswith('numpy.')]:
    del sys.modules[name]
sys.modules['numpy'] = None
sys.modules['mmengine'] = sys.modules['mmdet'] = None
import gclip_mm
assert gclip_mm.clipping.gradients.norms.np is None
model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten(), torch.nn.Linear(144, 3))
for name in gclip_mm.CLIPPERS:
    for fused in (False, True):
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, fused=fused)
        clip_grad = dict(type=name, **gclip_mm.CLIPPERS.get(name).example)
        with gclip_mm.attach(optimizer, clip_grad, model=model) as handle:
            for step in range(3):
                optimizer.zero_grad()
                factor = float('nan') if step == 1 else 1.0
                (model(torch.randn(2, 3, 8, 8)).sum() * factor).backward()
                optimizer.step()
                assert handle.stats()['nonfinite'] == (step == 1), name
            assert all(torch.isfinite(p).all() for p in model.parameters()), name
print('done')
"""


def test_every_rule_steps_without_numpy():
    done = subprocess.run(
        [sys.executable, '-c', PROGRAM],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip() == 'done'
