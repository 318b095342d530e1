"""The flags are MMDetection's to the letter: its own parsers are the reference."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path

import mmdet
import pytest

from gclip_mm.cli import test as test_command
from gclip_mm.cli import train as train_command

COMMANDS = {'train': train_command, 'test': test_command}
MMDET_TOOLS = Path(mmdet.__file__).parent / '.mim' / 'tools'


def flags(parser: argparse.ArgumentParser) -> dict[tuple[str, ...], tuple]:
    return {
        (tuple(action.option_strings) or (action.dest,)): (
            action.dest,
            type(action),
            action.nargs,
            action.const,
            action.default,
            action.type or str,
            action.choices,
            action.required,
        )
        for action in parser._actions
    }


@pytest.mark.parametrize('name', ['train', 'test'])
def test_flags_are_those_of_mmdetection(name, monkeypatch):
    class Parsed(Exception):
        pass

    def stop(self, *args, **kwargs):
        raise Parsed(self)

    ours = COMMANDS[name].build_parser()
    path = MMDET_TOOLS / f'{name}.py'
    spec = importlib.util.spec_from_file_location(f'mmdet_{name}', path)
    theirs = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(theirs)
    monkeypatch.setattr(sys, 'argv', [name])
    monkeypatch.setattr(argparse.ArgumentParser, 'parse_args', stop)
    with pytest.raises(Parsed) as caught:
        theirs.parse_args()
    expected = flags(caught.value.args[0])
    actual = flags(ours)
    assert len(expected) >= 8
    assert {key: actual.get(key) for key in expected} == expected


@pytest.mark.parametrize('name', ['train', 'test'])
def test_help_describes_every_flag_except_local_rank(name):
    parser = COMMANDS[name].build_parser()
    undescribed = [a.dest for a in parser._actions if not a.help]
    assert undescribed in ([], ['local_rank'])


@pytest.mark.parametrize(
    'name', ['vfnet/vfnet_r50_fpn_1x_coco.py', 'retinanet/retinanet_r50_fpn_1x_coco.py']
)
def test_cfg_options_apply_on_top_of_the_recipe(name):
    """The first of them says None, into which nothing can be merged."""
    words = [f'mmdet::{name}', '--clip', 'norm', '--cfg-options']
    words += ['optim_wrapper.clip_grad.max_norm=3', 'optim_wrapper.optimizer.lr=0.5']
    cfg = train_command.configure(train_command.build_parser().parse_args(words))
    assert cfg.optim_wrapper.clip_grad.max_norm == 3
    assert cfg.optim_wrapper.optimizer.lr == 0.5
