"""``gclip train`` with a project's own package on MMEngine, without MMDetection and MMCV."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.plain_project import CONFIG, write_project

ROOT = Path(__file__).resolve().parents[2]
BOUND, LR, STEPS = 0.5, 0.1, 6

OPTIMIZER = f"optimizer=dict(type='SGD', lr={LR})"
RULE = f"clip_grad=dict(type='NormClip', max_norm={BOUND})"
DOORS = {
    'wrapper': f"optim_wrapper = dict(type='GClipOptimWrapper', {OPTIMIZER}, {RULE})",
    'hook': f"optim_wrapper = dict({OPTIMIZER})\ncustom_hooks = [dict(type='GClipHook', {RULE})]",
    'flag': f'optim_wrapper = dict({OPTIMIZER})',
}
PROGRAM = """
import json, sys
sys.modules.update(mmdet=None, mmcv=None)  # an import raises ImportError
from gclip_mm.cli import main
work, config, *flags = sys.argv[1:]
assert main(['train', config, '--work-dir', work, *flags]) == 0
import torch
state = torch.load(f'{work}/epoch_3.pth')['state_dict']
absent = not any(name.split('.')[0] in ('mmdet', 'mmcv') for name, m in sys.modules.items() if m)
print(json.dumps(dict(absent=absent, state={k: v.tolist() for k, v in state.items()})))
"""


def trained_by_torch() -> dict[str, torch.Tensor]:
    layer = torch.nn.Linear(3, 2)
    torch.nn.init.constant_(layer.weight, 0.5)
    torch.nn.init.zeros_(layer.bias)
    optimizer = torch.optim.SGD(layer.parameters(), lr=LR)
    data = torch.arange(3.0) + torch.arange(4.0)[:, None]
    for step in range(STEPS):
        optimizer.zero_grad()
        (100 * layer(data.split(2)[step % 2]).square().mean()).backward()
        assert torch.nn.utils.clip_grad_norm_(layer.parameters(), BOUND) > BOUND
        optimizer.step()
    return {f'layer.{name}': value.detach() for name, value in layer.named_parameters()}


@pytest.mark.parametrize('door', DOORS)
def test_a_package_of_ones_own_trains_clipped(door, tmp_path):
    write_project(tmp_path)
    imports = '' if door == 'flag' else "custom_imports = dict(imports=['gclip_mm'])\n"
    config = tmp_path / 'mine.py'
    config.write_text(CONFIG + imports + DOORS[door] + '\n')
    flags = ['--clip', f'type=NormClip,max_norm={BOUND}'] if door == 'flag' else []
    done = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', PROGRAM, str(tmp_path / 'run'), str(config), *flags],
        env={**os.environ, 'PYTHONPATH': os.pathsep.join([str(tmp_path), str(ROOT)])},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert result['absent'], 'MMDetection or MMCV was imported'
    true = trained_by_torch()
    assert result['state'].keys() == true.keys()
    for name, value in true.items():
        torch.testing.assert_close(torch.tensor(result['state'][name]), value)
