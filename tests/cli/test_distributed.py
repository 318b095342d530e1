"""Several processes: what the scripts hand to torchrun, and that two of them train as one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from gclip_mm.engine.configs import LaunchError
from gclip_mm.engine.dist import set_up_cpu_distributed

from .conftest import ROOT, TOY

TOOLS = ROOT / 'tools'


def script(path: Path, text: str) -> Path:
    path.write_text(f'#!/bin/sh\n{text}\n')
    path.chmod(0o755)
    return path


def run(name: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    env = {k: v for k, v in os.environ.items() if k not in ('PORT', 'NNODES', 'MASTER_ADDR')}
    return subprocess.run(
        ['bash', str(TOOLS / name), *arguments],
        env={**env, **environment},
        capture_output=True,
        text=True,
        timeout=240,
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason='what happens without a GPU')
def test_two_processes_on_a_cpu_train_as_one(train, tmp_path):
    """Two ranks with four samples each take the step of one process with all eight."""
    common = [
        'train_dataloader.dataset.size=8',
        'train_dataloader.sampler.shuffle=False',
        'optim_wrapper.optimizer.type=SGD',
        'optim_wrapper.optimizer.lr=0.5',
    ]
    alone = train('alone', '--cfg-options', *common, 'train_dataloader.batch_size=8')
    done = run(
        'dist_train.sh',
        str(TOY / 'toy.py'),
        '2',
        '--work-dir',
        str(tmp_path / 'two'),
        '--cfg-options',
        *common,
        PYTHON=sys.executable,
        PYTHONPATH=str(TOY),
    )
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in (tmp_path / 'two').glob('rank*')) == [
        'rank0_of_2',
        'rank1_of_2',
    ]
    expected, actual = (
        torch.load(folder / 'iter_12.pth')['state_dict'] for folder in (alone, tmp_path / 'two')
    )
    start = torch.load(alone / 'iter_4.pth')['state_dict']
    assert not torch.equal(start['net.0.weight'], expected['net.0.weight'])
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ('environment', 'expected'),
    [
        ({}, ['--standalone']),
        (
            {'PORT': '1234'},
            ['--nnodes=1', '--node-rank=0', '--master-addr=127.0.0.1', '--master-port=1234'],
        ),
        (
            {'NNODES': '2', 'NODE_RANK': '1', 'MASTER_ADDR': 'first'},
            ['--nnodes=2', '--node-rank=1', '--master-addr=first', '--master-port=29500'],
        ),
    ],
)
@pytest.mark.parametrize('tool', ['train', 'test'])
def test_mmdetections_variables_reach_torchrun(tool, environment, expected, tmp_path):
    python = script(tmp_path / 'python', 'for word; do echo "$word"; done')
    own = ['c.py', 'w.pth'] if tool == 'test' else ['c.py']
    done = run(f'dist_{tool}.sh', *own, '4', '--x', 'a b', PYTHON=str(python), **environment)
    assert done.stdout.splitlines() == [
        '-m',
        'torch.distributed.run',
        *expected,
        '--nproc-per-node=4',
        str(TOOLS / f'{tool}.py'),
        *own,
        '--launcher',
        'pytorch',
        '--x',
        'a b',
    ]


@pytest.mark.parametrize('tool', ['train', 'test'])
def test_slurm_runs_one_torchrun_per_node(tool, tmp_path):
    python = script(tmp_path / 'python', 'for word; do echo "$word"; done')
    # Prints its own options, then runs the task as the second of the two nodes.
    script(
        tmp_path / 'srun',
        'while [ "$1" != bash ]; do echo "$1"; shift; done\n'
        'export SLURM_JOB_NODELIST=gpu[7-8] SLURM_NODEID=1 SLURM_JOB_ID=30042\n"$@"',
    )
    script(tmp_path / 'scontrol', 'echo gpu7; echo gpu8')
    done = run(
        f'slurm_{tool}.sh',
        'part',
        'name',
        'c.py',
        'there',
        '--x',
        'a b',
        PYTHON=str(python),
        PATH=f'{tmp_path}:{os.environ["PATH"]}',
        GPUS='8',
        GPUS_PER_NODE='4',
        CPUS_PER_TASK='3',
        SRUN_ARGS='--qos high',
    )
    assert done.stdout.splitlines() == [
        '-p',
        'part',
        '--job-name=name',
        '--nodes=2',
        '--ntasks=2',
        '--ntasks-per-node=1',
        '--gres=gpu:4',
        '--cpus-per-task=12',
        '--kill-on-bad-exit=1',
        '--qos',
        'high',
        '-m',
        'torch.distributed.run',
        '--nnodes=2',
        '--node-rank=1',
        '--master-addr=gpu7',
        '--master-port=30042',
        '--nproc-per-node=4',
        str(TOOLS / f'{tool}.py'),
        'c.py',
        *(['--work-dir', 'there'] if tool == 'train' else ['there']),
        '--launcher',
        'pytorch',
        '--x',
        'a b',
    ]


def test_slurm_rejects_gpus_that_do_not_fill_nodes(tmp_path):
    done = run('slurm_train.sh', 'p', 'n', 'c.py', 'w', GPUS='9', GPUS_PER_NODE='4')
    assert done.returncode == 2
    assert 'GPUS=9 is not a multiple of GPUS_PER_NODE=4' in done.stderr


@pytest.mark.parametrize(
    'name', ['dist_train.sh', 'dist_test.sh', 'slurm_train.sh', 'slurm_test.sh']
)
def test_too_few_arguments_show_the_usage(name):
    done = run(name, 'c.py')
    assert done.returncode == 2
    assert done.stderr.startswith('usage: ')


@pytest.mark.skipif(torch.cuda.is_available(), reason='what happens without a GPU')
def test_launchers_without_gpu_or_torchrun_are_rejected(monkeypatch):
    assert not set_up_cpu_distributed(Config(dict(launcher='none')))
    with pytest.raises(LaunchError, match='--launcher slurm needs a GPU'):
        set_up_cpu_distributed(Config(dict(launcher='slurm')))
    for name in ('RANK', 'WORLD_SIZE', 'LOCAL_RANK'):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(LaunchError, match='RANK, WORLD_SIZE, LOCAL_RANK'):
        set_up_cpu_distributed(Config(dict(launcher='pytorch')))
