"""A bad annotation and a bad image are found, drawn and named, in COCO JSON and in VOC XML."""

from __future__ import annotations

import json
import math

import matplotlib
import pytest
from mmengine.config import Config

from gclip_mm.analysis.annotations import AnnotationIndex
from gclip_mm.analysis.pictures import spikes as pictures
from gclip_mm.analysis.spikes import read_spikes
from gclip_mm.cli import spikes as tool
from tests.analysis.spike_data import WIDTH, config, line, voc


@pytest.fixture
def config_file(faulty_images, tmp_path):
    path = tmp_path / 'config.py'
    config(voc(faulty_images)).dump(path)
    return str(path)


def test_sheets_are_drawn_and_images_listed(config_file, spiked_run, capsys):
    assert tool.main([config_file, str(spiked_run)]) == 0
    text = capsys.readouterr().out.splitlines()
    assert text[0].startswith('3 spikes')
    assert 'b.jpg' in text[1] and 'outside the image, 12000 x 25' in text[1]
    assert any('c.jpg' in row and 'of the values are 0 or 255' in row for row in text)
    assert not any('a.jpg' in row and '<-' in row for row in text)
    sheets = sorted(path.name for path in (spiked_run / 'spike_sheets').iterdir())
    assert sheets == ['iter_000007.png', 'iter_000012.png', 'iter_000030.png']
    assert matplotlib.image.imread(spiked_run / 'spike_sheets' / sheets[0]).std() > 0.05


def test_sheet_shows_boxes_and_faults(config_file, spiked_run):
    looked = pictures.Looked(AnnotationIndex(Config.fromfile(config_file)))
    spike = read_spikes(spiked_run)[0]
    figure = pictures.draw_spike(spike, looked, {image.name: 1 for image in spike.images})
    good, bad = figure.axes
    assert [p.get_edgecolor()[:3] for p in good.patches] == [
        matplotlib.colors.to_rgb(pictures.SOUND)
    ] * 2
    colors = [p.get_edgecolor()[:3] for p in bad.patches]
    assert colors == [matplotlib.colors.to_rgb(c) for c in (pictures.SOUND, pictures.FAULTY)]
    rectangle = bad.patches[1]
    assert (rectangle.get_x(), rectangle.get_width()) == (-3000, 12000)
    assert bad.get_xlim() == (-0.5, WIDTH - 0.5), 'the image keeps its size'
    assert 'iteration 7: norm, gradient norm 50' in figure.get_suptitle()


def test_iter_and_limit_select_sheets(config_file, spiked_run, tmp_path):
    out = tmp_path / 'out'
    assert tool.main([config_file, str(spiked_run), '--out', str(out), '--limit', '1']) == 0
    assert [path.name for path in out.iterdir()] == ['iter_000012.png'], 'the worst is not finite'
    assert tool.main([config_file, str(spiked_run), '--out', str(out), '--iter', '7']) == 0
    assert {path.name for path in out.iterdir()} == {'iter_000012.png', 'iter_000007.png'}


def test_train_with_spikes_records_the_bad_steps(train):
    """`gclip train --spikes` leaves the file that `gclip spikes` reads; without the flag, none."""
    options = ['--cfg-options', 'train_dataloader.dataset.nan_at=5']
    spikes = read_spikes(train('spikes', '--spikes', *options))
    # 12 steps of 4 samples are three passes over the 16 samples; one of them is NaN.
    assert [spike.cause for spike in spikes] == ['nonfinite'] * 3
    assert all(math.isnan(spike.losses['loss']) for spike in spikes)
    assert not (train('plain', *options) / 'spikes.jsonl').exists()


def test_missing_image_is_named(config_file, spiked_run, capsys, tmp_path):
    row = line(1, [(0, 'gone.jpg')], tmp_path)
    path = tmp_path / 'other.jsonl'
    path.write_text(json.dumps(row))
    assert tool.main([config_file, str(path), '--out', str(tmp_path / 'o')]) == 0
    text = capsys.readouterr().out
    assert 'gone.jpg  <- cannot be read; is not in the data set of the config' in text


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['{config}', 'gone.jsonl'], 'gone.jsonl is not there'),
        (['gone.py', '{spiked_run}'], "config 'gone.py' is not there"),
        (['{config}', '{spiked_run}', '--iter', '8'], '--iter: no spike at 8'),
    ],
)
def test_errors_are_one_line(config_file, spiked_run, capsys, arguments, message):
    arguments = [text.format(config=config_file, spiked_run=spiked_run) for text in arguments]
    assert tool.main(arguments) == 1
    assert message in capsys.readouterr().err
