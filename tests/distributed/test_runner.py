"""MMEngine's runners with DDP and FSDPStrategy train, save and resume like one process."""

from __future__ import annotations

import functools
import os
import time
from pathlib import Path

import pytest
import torch

from gclip_mm import CLIPPERS
from tests.distributed.launching import launch, once, start
from tests.distributed.test_distributed import flat

#: The first test that needs the results runs all processes, which is slow on a busy machine.
pytestmark = pytest.mark.timeout(900)

WORKER = Path(__file__).with_name('runner_worker.py')
RULES = {name: {'type': name, **CLIPPERS.get(name).example} for name in CLIPPERS}
#: Settings whose warm-up ends within the few steps of such a run.
RULES['NormClip'] = dict(type='NormClip', max_norm=0.5)
RULES['AutoClip'] = dict(type='AutoClip', percentile=40, window=3)
RULES['ZClip'] = dict(type='ZClip', warmup_steps=2, z_threshold=0.5, max_norm=None)
RULES['AdaGC'] = dict(type='AdaGC', warmup_steps=2, beta=0.9)
RULES['carry'] = dict(type='NormClip', max_norm=0.5, carry=True)
#: Rules that the flat parameters of FSDP1 do not allow.
NOT_ON_FLAT = ('AGC', 'Auto', 'SpikeClip', 'carry')
FULL, LOCAL = (dict(type='FSDPStrategy', state_dict_cfg=kind) for kind in ('full', 'local'))


def optimizer(rule: dict) -> dict:
    if rule['type'] == 'GradientStabilizer':
        return dict(type='AdamW', lr=0.02)
    return dict(type='SGD', lr=0.02, momentum=0.9)


def job(name: str, **keys) -> dict:
    rule = RULES[name]
    return dict(clip_grad=rule, optimizer=optimizer(rule), **keys)


#: The NaN reduces the loss scale, which must stay equal on all ranks.
AMP = dict(
    wrapper='GClipAmpOptimWrapper',
    wrapper_keys=dict(dtype='float16', loss_scale=dict(init_scale=2.0**6)),
)
#: Jobs that also run in one process.
JOBS = {
    # Every second backward pass has no all-reduce, and one layer is not used.
    **{f'ddp {name}': job(name, accumulate=2, spare=True) for name in RULES},
    **{f'plain {name}': job(name) for name in RULES if name not in NOT_ON_FLAT},
    'hook AdaGC': job('AdaGC', door='hook', wrapper='OptimWrapper'),
    'plain amp': job('AdaGC', **AMP),
}
SPREAD = {
    **{f'ddp {name}': JOBS[f'ddp {name}'] for name in RULES},
    **{f'fsdp {name}': job(name, strategy=FULL) for name in RULES},
    'plain NormClip': JOBS['plain NormClip'],
    'hook AdaGC': JOBS['hook AdaGC'],
    'fsdp hook AdaGC': job('AdaGC', strategy=FULL, door='hook', wrapper='OptimWrapper'),
    'fsdp local AdaGC': job('AdaGC', strategy=LOCAL, saver='GClipCheckpointHook'),
    'fsdp amp': job('AdaGC', strategy=FULL, **AMP),
    'amp unshared': job(
        'AdaGC',
        strategy=FULL,
        wrapper=AMP['wrapper'],
        wrapper_keys=dict(AMP['wrapper_keys'], use_fsdp=False),
    ),
    'flexible ddp': job('NormClip', strategy=dict(type='DDPStrategy')),
    'epochs': job('AdaGC', epochs=True),
    # The stock wrapper does not handle nonfinite steps, so the run ends before the first of them.
    'fsdp stock': dict(
        job('NormClip', strategy=FULL, wrapper='OptimWrapper', iters=4),
        clip_grad=dict(max_norm=0.5),
    ),
}
#: Jobs that are resumed from a checkpoint of two processes, on one and on four.
ON_ONE = [*(f'ddp {name}' for name in RULES), 'hook AdaGC']
ON_FOUR = [*ON_ONE, *(f'fsdp {name}' for name in ('NormClip', 'AutoClip', 'ZClip', 'AdaGC'))]
ON_FOUR += ['fsdp GradientStabilizer', 'fsdp hook AdaGC', 'fsdp amp']
#: Jobs that are resumed in a process group of one process, where FSDP shards nothing.
ON_ONE_OF_FSDP = ['fsdp NormClip', 'fsdp AdaGC', 'fsdp amp']


def resumed(folder: Path, names: list[str], into: str) -> dict[str, dict]:
    return {
        name: dict(
            SPREAD[name],
            work_dir=str(folder / into / name.replace(' ', '_')),
            load_from=str(folder / 'two' / name.replace(' ', '_') / 'iter_4.pth'),
        )
        for name in names
    }


def runs(file: Path) -> bool:
    """Whether the process whose id is in the file is still running."""
    try:
        os.kill(int(file.read_text()), 0)
    except ProcessLookupError:
        return False
    return True


@pytest.fixture(scope='module')
def results(tmp_path_factory) -> dict[str, dict]:
    """Results of ``one`` and ``two`` processes, resumed runs (``one_again``, ...), ``killed``."""

    def make(file: Path) -> None:
        folder = file.with_suffix('')
        folder.mkdir()

        def run(jobs: dict, processes: int, key: str, **options) -> None:
            for name, one in jobs.items():
                one.setdefault('work_dir', str(folder / key / name.replace(' ', '_')))
            found[key] = launch(WORKER, jobs, processes, folder / f'{key}.pt', **options)

        found: dict[str, dict] = {}
        run({name: dict(one) for name, one in JOBS.items()}, 1, 'one')
        run({name: dict(one) for name, one in SPREAD.items()}, 2, 'two')
        run(resumed(folder, ON_ONE, 'one_again'), 1, 'one_again')
        run(resumed(folder, ON_ONE_OF_FSDP, 'fsdp_again'), 1, 'fsdp_again', torchrun=True)
        killed = dict(SPREAD['epochs'], work_dir=str(folder / 'killed'))
        done = start(WORKER, {'epochs': dict(killed, kill=[1, 12])}, 2, folder / 'killed.pt')
        ended = time.time()
        found['killed'] = {
            'status': done.returncode,
            'said': done.stderr,
            'seconds': ended - float(Path(killed['work_dir'], 'killed_at').read_text()),
            'left': [path.name for path in Path(killed['work_dir']).glob('pid_*') if runs(path)],
        }
        again = resumed(folder, ['fsdp local AdaGC', 'fsdp AdaGC'], 'two_again')
        run({**again, 'epochs': dict(killed, resume=True)}, 2, 'two_again')
        run(resumed(folder, ON_FOUR, 'four_again'), 4, 'four_again')
        torch.save(found, file)

    return once(tmp_path_factory, 'runners', make)


def same_run(a: dict, b: dict) -> None:
    # In float16, each process rounds its part of the batch separately.
    rtol, atol = (2e-3, 2e-3) if a['half'] else (1e-4, 2e-6)
    close = functools.partial(torch.testing.assert_close, rtol=rtol, atol=atol, equal_nan=True)
    close(a['params'], b['params'])
    # A resumed run has only the later part of the history.
    count = min(len(a['grad_norm']), len(b['grad_norm']))
    assert count >= 2
    close(*(torch.tensor(run['grad_norm'][-count:]) for run in (a, b)))
    close(flat(a['state']), flat(b['state']))


@pytest.mark.parametrize('name', [name for name in JOBS if name in SPREAD])
def test_ddp_run_equals_a_run_in_one_process(results, name):
    assert results['two'][name]['kind'] == 'MMDistributedDataParallel'
    same_run(results['two'][name], results['one'][name])


def test_ddp_does_not_synchronize_while_accumulating(results):
    assert results['two']['plain NormClip']['syncs'] == 8
    assert results['two']['ddp NormClip']['syncs'] == 4


def test_unused_parameters_do_not_change(results):
    spare = results['two']['ddp NormClip']['params']['spare.weight']
    assert torch.equal(spare, results['one']['ddp NormClip']['params']['spare.weight'])


@pytest.mark.parametrize('name', RULES)
def test_fsdp_strategy_equals_one_process_or_refuses(results, name):
    found = results['two'][f'fsdp {name}']
    if name in NOT_ON_FLAT:
        assert 'fully_shard' in found['error']
        return
    assert found['kind'] == 'MMFullyShardedDataParallel'
    same_run(found, results['one'][f'plain {name}'])


def test_fsdp_under_a_loss_scaler_equals_one_process(results):
    """The strategy uses the sharded scaler; a run with use_fsdp=False raises."""
    same_run(results['two']['fsdp amp'], results['one']['plain amp'])
    assert results['two']['fsdp amp']['scale'] == results['one']['plain amp']['scale'] == 2.0**5
    assert 'use_fsdp=True' in results['two']['amp unshared']['error']


def test_ddp_of_the_flexible_runner_equals_one_process(results):
    assert results['two']['flexible ddp']['kind'] == 'MMDistributedDataParallel'
    same_run(results['two']['flexible ddp'], results['one']['plain NormClip'])


def test_stock_clips_each_rank_by_its_own_norm(results):
    """Behaviour of the strategy without this package, for comparison."""
    one, stock = results['one']['plain NormClip'], results['two']['fsdp stock']
    first, second = stock['norms_of_ranks']
    assert first[0] != pytest.approx(second[0], rel=0.05)
    assert (first[0] ** 2 + second[0] ** 2) ** 0.5 == pytest.approx(one['grad_norm'][0], rel=1e-5)
    # The stock run continues with other weights and other norms.
    assert stock['grad_norm'][1] != pytest.approx(one['grad_norm'][1] / 2**0.5, rel=0.05)
    # With this package, all ranks log the norm of the run in one process.
    ours = results['two']['fsdp NormClip']['norms_of_ranks']
    assert ours[0][:5] == ours[1][:5] == pytest.approx(one['grad_norm'][:5], rel=1e-5)


@pytest.mark.parametrize('name', ON_ONE)
def test_checkpoint_of_two_processes_resumes_on_one(results, name):
    same_run(results['one_again'][name], results['two'][name])


@pytest.mark.parametrize('name', ON_ONE_OF_FSDP)
def test_fsdp_checkpoint_of_two_processes_resumes_on_one(results, name):
    assert results['fsdp_again'][name]['kind'] == 'MMFullyShardedDataParallel'
    same_run(results['fsdp_again'][name], results['two'][name])


@pytest.mark.parametrize('name', ON_FOUR)
def test_checkpoint_of_two_processes_resumes_on_four(results, name):
    same_run(results['four_again'][name], results['two'][name])


@pytest.mark.parametrize('name', ['fsdp local AdaGC', 'fsdp AdaGC'])
def test_sharded_checkpoint_resumes_bit_identically(results, name):
    again, whole = results['two_again'][name], results['two'][name]
    assert all(torch.equal(again['params'][key], p) for key, p in whole['params'].items())
    torch.testing.assert_close(flat(again['state']), flat(whole['state']), rtol=0, atol=0)


def test_killed_worker_ends_the_run_with_an_error(results):
    killed = results['killed']
    assert killed['status'] != 0
    assert 'SIGKILL' in killed['said']
    assert killed['seconds'] < 60
    assert killed['left'] == []


def test_killed_run_resumes_bit_identically(results):
    """The run resumes from the last epoch's checkpoint, including data order and rule state."""
    again, whole = results['two_again']['epochs'], results['two']['epochs']
    assert all(torch.equal(again['params'][key], p) for key, p in whole['params'].items())
    torch.testing.assert_close(flat(again['state']), flat(whole['state']), rtol=0, atol=0)
    assert len(whole['grad_norm']) == 24
    torch.testing.assert_close(
        torch.tensor(again['grad_norm']), torch.tensor(whole['grad_norm']), equal_nan=True
    )
