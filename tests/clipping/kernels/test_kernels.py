"""Tests of the Triton kernels under Triton's interpreter, and of clipping without Triton."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
import torch
from torch import nn

from gclip_mm import attach
from gclip_mm.clipping import kernels

ROOT = Path(__file__).resolve().parents[3]
CPU = torch.device('cpu')


needs_triton = pytest.mark.skipif(
    importlib.util.find_spec('triton') is None,
    reason='Triton is not installed (pip install triton; it comes with PyTorch for CUDA)',
)


@needs_triton
@pytest.mark.timeout(900)
@pytest.mark.parametrize('checks', ['kernel_checks', 'decision_checks'])
def test_checks_pass_under_the_interpreter(checks):
    """In a separate process: the interpreter has to be selected before Triton is imported."""
    done = subprocess.run(
        [sys.executable, '-m', 'pytest', '-q', '-p', 'no:cacheprovider', '-p', 'no:xdist']
        + [f'tests/clipping/kernels/{checks}.py'],
        cwd=ROOT,
        env={**os.environ, 'TRITON_INTERPRET': '1', 'PYTEST_ADDOPTS': ''},
        capture_output=True,
        text=True,
        timeout=840,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert int(re.search(r'(\d+) passed', done.stdout)[1]) > 50
    assert 'skipped' not in done.stdout.splitlines()[-1]


@needs_triton
@pytest.mark.timeout(900)
def test_kernels_compile_for_gpu_architectures(tmp_path):
    """Down to machine code, without a GPU."""
    env = {name: value for name, value in os.environ.items() if name != 'TRITON_INTERPRET'}
    done = subprocess.run(
        [sys.executable, '-m', 'tests.clipping.kernels.kernel_builds'],
        cwd=ROOT,
        env={**env, 'TRITON_CACHE_DIR': str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=840,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    builds = json.loads(done.stdout)
    assert len(builds) == 54 + 48 and all(build['size'] > 1000 for build in builds)
    for build in builds:
        # Decisions are in double precision; no other test would notice a rounding to single.
        assert build['kernel'].startswith('_') or not build['single'], build
        # The counter of arrived programs is the only atomic: atomic sums have no fixed order and
        # would differ between processes.
        shares = build['kernel'] in ('_measure', '_clamp')
        assert build['atomics'] == ['atom.global.gpu.acq_rel.add.u32'] * shares, build
        # Subnormal gradients must not be flushed to 0. exp and log may flush in their first
        # approximation.
        starts = {'rcp.approx.ftz.f64', 'abs.ftz.f32'} if 'powers' in build['variant'] else set()
        assert set(build['flushing']) <= starts, build
        # A schedule may change these arguments in every step.
        assert build['kernel'] != '_clamp' or build['plain'] == ['low', 'high'], build
        assert build['kernel'] != '_measure' or build['plain'] == ['order'], build


@pytest.fixture
def fresh():
    """Clear the cached answer to whether the kernels work."""
    kernels._works_on.cache_clear()
    yield
    kernels._works_on.cache_clear()


def test_no_triton_kernels_on_a_cpu():
    assert not kernels.can_run_on(CPU)


def test_no_kernels_without_triton(fresh):
    with (
        kernels.also_on('cpu'),
        mock.patch.object(importlib.util, 'find_spec', return_value=None),
    ):
        assert not kernels.can_run_on(CPU)


def test_no_kernels_if_turned_off(fresh, monkeypatch):
    monkeypatch.setenv('GCLIP_TRITON', '0')
    with kernels.also_on('cpu'), mock.patch.object(importlib.util, 'find_spec') as find:
        assert not kernels.can_run_on(CPU)
    assert not find.called


def test_kernels_that_cannot_be_built_warn_once_and_fall_back(fresh):
    """As without a C compiler or on an old GPU."""
    model = nn.Linear(5, 4)
    nn.init.ones_(model.weight)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    broken = mock.Mock(side_effect=RuntimeError('no compiler'))
    with (
        kernels.also_on('cpu'),
        mock.patch.object(importlib.util, 'find_spec'),
        mock.patch.object(kernels.MultiTensor, 'norms', broken),
        attach(optimizer, dict(type='AGC', clip_factor=0.01)),
        pytest.warns(UserWarning, match='no compiler') as seen,
    ):
        for _ in range(3):
            model.weight.grad = torch.ones(4, 5)
            optimizer.step()
    assert len(seen) == 1
    limit = 0.01 * 5**0.5
    torch.testing.assert_close(model.weight.grad.norm(dim=1), torch.full((4,), limit))
