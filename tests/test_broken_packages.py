"""Optional packages that are found but cannot be imported cause a warning; the rest works."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

PROGRAM = """
import sys, warnings
import torch
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter('always')
    import gclip_mm
    for rule in (dict(type='ValueClip', clip_value=0.1), dict(type='NormClip', max_norm=0.5)):
        p = torch.nn.Parameter(torch.zeros(4))
        optimizer = torch.optim.SGD([p], lr=1.0)
        gclip_mm.attach(optimizer, rule)
        p.grad = torch.ones(4)
        optimizer.step()
        bound = 0.2 if rule['type'] == 'ValueClip' else 0.5
        torch.testing.assert_close(p.grad.norm(), torch.tensor(bound))
for warning in caught:
    print('WARNING', str(warning.message).replace(chr(10), ' '))
if 'GClipOptimWrapper' in gclip_mm.__all__:
    wrapper = gclip_mm.GClipOptimWrapper(
        torch.optim.SGD([p], lr=1.0), clip_grad=dict(type='NormClip', max_norm=0.25)
    )
    before = p.detach().clone()
    wrapper.update_params(p.sum() * 3)
    torch.testing.assert_close((before - p.detach()).norm(), torch.tensor(0.25))
    print('MMENGINE')
"""


def run(tmp_path, **modules) -> str:
    """Run the program with modules that raise these errors on import; return its output."""
    for name, error in modules.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / '__init__.py').write_text(f'raise {error}\n')
    done = subprocess.run(
        [sys.executable, '-c', PROGRAM],
        env={**os.environ, 'PYTHONPATH': os.pathsep.join([str(tmp_path), str(ROOT)])},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.parametrize(
    'error',
    [
        "AssertionError('MMCV==2.2.0 is used but incompatible')",
        "ModuleNotFoundError('No module named mmcv')",
        "ImportError('libGL.so.1: cannot open shared object file')",
    ],
)
def test_broken_mmdet_warns_and_the_mmengine_wrapper_clips(tmp_path, error):
    pytest.importorskip('mmengine')
    out = run(tmp_path, mmdet=error)
    lines = [line for line in out.splitlines() if 'mmdet' in line]
    assert len(lines) == 1 and error.split("'")[1] in lines[0]
    assert 'gclip_mm works without the models' in lines[0]
    assert 'MMENGINE' in out


def test_broken_mmengine_warns_and_attach_clips(tmp_path):
    out = run(tmp_path, mmengine="ImportError('no yaml')")
    assert 'mmengine is installed but cannot be imported (ImportError: no yaml)' in out
    assert 'MMENGINE' not in out


@pytest.mark.parametrize('error', ["ImportError('Numba needs NumPy 2.2 or less')", "OSError('x')"])
def test_broken_numba_warns_and_attach_clips(tmp_path, error):
    out = run(tmp_path, numba=error, mmengine="ImportError('saves time')")
    assert "Numba cannot run gclip_mm's kernels" in out and error.split("'")[1] in out


def test_broken_triton_is_ignored_on_a_cpu(tmp_path):
    out = run(tmp_path, triton="ImportError('no')", mmengine="ImportError('saves time')")
    assert 'riton' not in out
