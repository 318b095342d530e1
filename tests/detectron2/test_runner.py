"""``python -m gclip_mm.detectron2``: scripts that are not edited, in this process and spawned."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
from pathlib import Path

import detectron2.config.defaults
import detectron2.engine
import pytest
import torch
from detectron2.engine import DefaultTrainer, SimpleTrainer, TrainerBase
from detectron2.solver import build_optimizer

from gclip_mm.clipping import ClipConfigError
from gclip_mm.detectron2 import clip
from gclip_mm.detectron2.runner import main
from tests.detectron2.toy import Trainer, batches, make_cfg, make_model, same, weights

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = Path(__file__).parent / 'scripts'
RULE = 'type=NormClip,max_norm=0.05'


@pytest.fixture
def run(monkeypatch):
    """Run a script in this process; what the runner changes is put back afterwards."""

    def call(*arguments, script='default_net.py'):
        flags = arguments[: arguments.index('--')] if '--' in arguments else arguments
        rest = arguments[len(flags) + 1 :]
        with monkeypatch.context() as patch:
            for cls, name in (
                (SimpleTrainer, '__init__'),
                (DefaultTrainer, '__init__'),
                (TrainerBase, 'before_train'),
            ):
                patch.setattr(cls, name, getattr(cls, name))
            for module in (detectron2.engine, sys.modules['detectron2.engine.launch']):
                patch.setattr(module, 'launch', module.launch)
            patch.setattr(sys, 'path', list(sys.path))
            patch.setattr(sys, 'argv', list(sys.argv))
            try:
                main([*map(str, flags), str(SCRIPTS / script), *map(str, rest)])
            finally:
                detectron2.config.defaults._C.SOLVER.pop('GCLIP', None)

    return call


def expected(folder, rule=RULE):
    """The weights that ``clip`` in ``build_optimizer`` gives."""

    def build(cfg, model):
        optimizer = build_optimizer(cfg, model)
        return optimizer if rule is None else clip(optimizer, rule, model)

    trainer = type('T', (Trainer,), {'build_optimizer': staticmethod(build)})(make_cfg(folder))
    trainer.train()
    return weights(trainer.model)


@pytest.mark.parametrize('how', ['flag', 'key'])
def test_script_is_clipped(run, tmp_path, how):
    output = tmp_path / 'run'
    if how == 'flag':
        run('--clip', RULE, '--', 'OUTPUT_DIR', output)
    else:
        run('--', 'OUTPUT_DIR', output, 'SOLVER.GCLIP', RULE)
    found = torch.load(output / 'weights.pt')
    assert same(found, expected(tmp_path / 'a'))
    assert not same(found, expected(tmp_path / 'b', None))
    key = RULE if how == 'key' else "''"
    assert f'GCLIP: {key}' in (output / 'config.yaml').read_text()


def test_yaml_sets_the_rule(run, tmp_path):
    (tmp_path / 'rule.yaml').write_text(f'SOLVER:\n  GCLIP: {RULE}\n')
    output = tmp_path / 'run'
    run('--', '--config-file', tmp_path / 'rule.yaml', 'OUTPUT_DIR', output)
    assert same(torch.load(output / 'weights.pt'), expected(tmp_path / 'a'))


def test_without_a_rule_nothing_is_clipped_and_a_warning_says_so(run, tmp_path, warned):
    run('--', 'OUTPUT_DIR', tmp_path / 'run')
    assert same(torch.load(tmp_path / 'run' / 'weights.pt'), expected(tmp_path / 'a', None))
    assert 'has clipped nothing' in warned()


@pytest.fixture
def warned(caplog):
    # Detectron2's loggers do not propagate to the root once they are set up.
    logger = logging.getLogger('detectron2.gclip_mm')
    logger.addHandler(caplog.handler)
    yield lambda: ' '.join(r.getMessage() for r in caplog.records if r.levelname == 'WARNING')
    logger.removeHandler(caplog.handler)


def test_loop_of_its_own_is_not_clipped_and_a_warning_says_so(run, warned):
    run('--clip', RULE, script='own_loop.py')
    assert 'needs one line, optimizer = gclip_mm.detectron2.clip(' in warned()


def test_clipped_run_does_not_warn(run, tmp_path, warned):
    run('--clip', RULE, '--', 'OUTPUT_DIR', tmp_path)
    assert 'clipped nothing' not in warned()


def test_flag_and_key_together_are_refused(run, tmp_path):
    with pytest.raises(ClipConfigError, match=r'--clip .* and SOLVER\.GCLIP'):
        run('--clip', RULE, '--', 'OUTPUT_DIR', tmp_path, 'SOLVER.GCLIP', 'Auto')


def test_own_clipping_of_detectron2_is_refused(run, tmp_path):
    with pytest.raises(ClipConfigError, match=r'SOLVER\.CLIP_GRADIENTS\.ENABLED = False'):
        run('--clip', RULE, '--', 'OUTPUT_DIR', tmp_path, 'SOLVER.CLIP_GRADIENTS.ENABLED', 'True')


def test_run_is_resumed_with_the_state_of_the_rule(run, tmp_path):
    rule = 'type=AutoClip,percentile=30'
    run('--clip', rule, '--', 'OUTPUT_DIR', tmp_path)
    state = torch.load(tmp_path / 'model_final.pth')['trainer']['_trainer']['optimizer']['gclip']
    assert state['steps'] == 6 and state['routes'][0]['rule'] == 'AutoClip'
    with pytest.raises(ValueError, match='AutoClip'):
        run('--clip', 'type=ZClip', '--', '--resume', 'OUTPUT_DIR', tmp_path)


@pytest.mark.parametrize(
    ('flags', 'message'),
    [
        (['--clip', 'type=AGC,clip_facto=1'], "'clip_facto'"),
        (['--clip', 'AGD'], "'AGD'"),
        (['--import', 'nowhere.py', '--clip', 'Auto'], 'nowhere.py'),
    ],
)
def test_mistake_in_the_flags_ends_with_a_message(run, capsys, flags, message):
    with pytest.raises(SystemExit) as end:
        run(*flags)
    assert end.value.code == 2 and message in capsys.readouterr().err


def test_missing_script_ends_with_a_message(run, capsys):
    with pytest.raises(SystemExit):
        run('--clip', 'Auto', script='nowhere.py')
    assert 'nowhere.py' in capsys.readouterr().err


def test_spawned_ranks_import_and_clip(tmp_path):
    """From another folder, with the path of the file to import relative to it."""
    (tmp_path / 'register.py').write_text("import os\nos.environ['REGISTERED'] = 'yes'\n")
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    path = os.pathsep.join([str(ROOT), *(p for p in sys.path if p)])
    command = [sys.executable, '-m', 'gclip_mm.detectron2', '--clip', RULE]
    command += ['--import', 'register.py', str(SCRIPTS / 'simple_net.py'), '--num-gpus', '2']
    command += ['--dist-url', f'tcp://127.0.0.1:{port}', str(tmp_path)]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env={**os.environ, 'PYTHONPATH': path},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    first, second = (torch.load(tmp_path / f'rank{rank}.pt') for rank in range(2))
    assert first['registered'] == second['registered'] == 'yes'
    assert 'clipped nothing' not in done.stderr
    # DDP averages the gradients of the two: the same as the losses of both, halved, here.
    model, twin = make_model(), make_model()
    for each in (model, twin):
        each.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for a, b in zip(*(batches(12)[rank::2] for rank in range(2)), strict=True):
        grads = []
        for some, data in ((model, a), (twin, b)):
            twin.load_state_dict({**twin.state_dict(), **dict(model.named_parameters())})
            some.zero_grad()
            sum(some(data).values()).backward()
            grads.append([p.grad for p in some.parameters()])
        for p, x, y in zip(model.parameters(), *grads, strict=True):
            p.grad = (x + y) / 2
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.05)
        optimizer.step()
    for name, value in model.named_parameters():
        for rank in (first, second):
            torch.testing.assert_close(rank['weights'][name], value.detach())
