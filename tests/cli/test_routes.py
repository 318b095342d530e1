"""The printed table is what the engine does."""

from __future__ import annotations

import csv

import pytest
from mmengine.config import Config
from mmengine.registry import MODELS

from gclip_mm.cli import routes as tool

from .conftest import ROOT

AGC = str(ROOT / 'configs' / 'bccd' / 'faster-rcnn_tiny_bccd_agc.py')


TINY = str(ROOT / 'configs' / 'bccd' / 'faster-rcnn_tiny_bccd.py')


def test_printed_table_and_csv_list_every_parameter(capsys, tmp_path):
    path = tmp_path / 'routes.csv'
    routes = "rules=[{'module':'BatchNorm2d','type':'NormClip','max_norm':3}]"
    recipe = f'type=AGC,clip_factor=0.02,exclude=[fc_cls],{routes}'
    assert tool.main([TINY, '--clip', recipe, '--csv', str(path)]) == 0
    text = capsys.readouterr().out
    lines = text.splitlines()
    assert lines[0].split() == list(tool.COLUMNS)
    weight = next(line for line in lines if 'bbox_head.fc_cls.weight' in line)
    assert 'Linear' in weight and 'exempt' in weight and "exclude[0] 'fc_cls'" in weight
    bn = next(line for line in lines if line.startswith('backbone.bn1.weight'))
    assert 'NormClip' in bn and 'max_norm=3' in bn and 'module BatchNorm2d' in bn
    # The summary counts every weight of the model once.
    rows = list(csv.DictReader(path.open()))
    model = MODELS.build(Config.fromfile(TINY).model)
    assert len(rows) == len(list(model.parameters()))
    weights = sum(
        int(line.split()[-2].replace(',', ''))
        for line in lines[lines.index('') + 3 :]
        if not line.startswith('Saved')
    )
    assert weights == sum(p.numel() for p in model.parameters())


def test_match_and_summary_shorten_the_table(capsys):
    assert tool.main([TINY, '--match', r'^rpn_head', '--clip', 'norm']) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(line.startswith('rpn_head') for line in lines[2 : lines.index('')])
    assert tool.main([TINY, '--match', r'^rpn_head', '--clip', 'norm', '--summary']) == 0
    assert 'rpn_head' not in capsys.readouterr().out


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['gone.py'], "config 'gone.py' is not there"),
        ([TINY, '--clip', 'type=AGC,clip_facto=1'], "did you mean 'clip_factor'"),
        ([TINY, '--clip', 'type=AGC,exclude=[fc_clss]'], "Nearest: 'roi_head.bbox_head.fc_cls"),
        (
            [AGC, '--cfg-options', 'optim_wrapper.type=OptimWrapper'],
            "not by 'agc'; use GClipOptimWrapper",
        ),
        ([TINY, '--match', 'nowhere', '--clip', 'norm'], "--match 'nowhere' is in no name"),
    ],
)
def test_errors_are_one_line(capsys, arguments, message):
    assert tool.main(arguments) == 1
    error = capsys.readouterr().err
    assert message.lower() in error.lower() and error.count('\n') == 1


def test_invalid_regular_expression_is_rejected(capsys):
    with pytest.raises(SystemExit):
        tool.main([TINY, '--match', '('])
    assert 'not a regular expression' in capsys.readouterr().err
