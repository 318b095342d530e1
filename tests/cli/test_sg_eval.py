"""``gclip sg-eval`` on a file that the metrics of a test run write."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import torch
from mmengine.evaluator import Evaluator

from gclip_mm.cli import main
from gclip_mm.cli.test import dumper
from gclip_mm.scene_graph.evaluation import OpenImagesVRDMetric, SceneGraphMetric
from tests.scene_graph.evaluation.data_samples import META, data_samples
from tests.scene_graph.evaluation.random_graphs import zero_shot

RECORDED = json.loads(
    Path(__file__).parents[1].joinpath('scene_graph/evaluation/evaluators.json').read_text()
)['figures']


def dump(file, protocol, meta=META, **options):
    """Write predictions as ``gclip test --out`` does; returns the metrics of the run."""
    metrics = [SceneGraphMetric(protocol=protocol, box_metric=False, **options)]
    evaluator = Evaluator([*metrics, OpenImagesVRDMetric()])
    evaluator.metrics.append(dumper(evaluator, str(file)))
    evaluator.dataset_meta = meta
    samples = data_samples(protocol)
    evaluator.process(samples)
    return evaluator.evaluate(len(samples))


@pytest.fixture
def evaluate(tmp_path, capsys):
    def run(protocol, *arguments, **options):
        file = tmp_path / 'out.pkl'
        figures = dump(file, protocol, **options)
        capsys.readouterr()
        assert main(['sg-eval', str(file), *arguments]) == 0
        return figures, capsys.readouterr().out

    return run


@pytest.mark.parametrize('protocol', ['predcls', 'sgdet'])
def test_all_conventions_equal_the_public_evaluators(evaluate, protocol):
    meta = {**META, 'convention': 'vg150'}
    figures, out = evaluate(protocol, '--json', meta=meta, zero_shot_triplets=zero_shot())
    result = json.loads(out)
    assert result['protocol'] == protocol and result['predicates'] == 12
    assert result['absent_predicates'] == [f'predicate {i}' for i in (3, 7, 8, 11)]
    for evaluator, convention in (
        ('Scene-Graph-Benchmark', 'vg150'),
        ('OpenPSG', 'psg'),
        ('SGG-Benchmark', 'sgg_benchmark'),
        ('neural-motifs', 'motifs'),
    ):
        for key, value in RECORDED[evaluator][protocol].items():
            if not (convention == 'motifs' and 'phr' in key):
                assert result['figures'][convention][key] == pytest.approx(value, abs=1e-6), key
    # The file gives what the metrics of the run gave.
    for key, value in result['figures']['vg150'].items():
        assert figures[f'sg/{key}'] == pytest.approx(value), key
    papers = {table['paper'] for table in result['comparable']}
    assert 'TDE 2002.11949' in papers
    assert ('EGTR 2404.02072' in papers) == (protocol == 'sgdet')


def test_open_images_figures_equal_the_public_evaluator(evaluate):
    figures, out = evaluate('sgdet', '--convention', 'openimages', '--json')
    recorded = RECORDED['PySGG (Open Images)']['sgdet']
    result = json.loads(out)['figures']['openimages']
    for key, value in recorded.items():
        assert result['ngR@50' if key == 'R@50' else key] == pytest.approx(value, abs=1e-6), key
        if key != 'mR@20':  # not among the metric's values of K
            assert figures[f'oi/{key}'] == pytest.approx(value, abs=1e-6), key


def test_text_has_a_table_and_says_what_is_comparable(evaluate):
    _, out = evaluate('predcls', meta={**META, 'convention': 'vg150'})
    lines = out.splitlines()
    assert lines[0].startswith('40 images, ') and lines[0].endswith('predcls, data: vg150')
    assert lines[1].startswith('4 of 12 predicates have no ground truth here (predicate 3, ')
    row = next(line for line in lines if line.startswith('mR@50'))
    assert row.split()[1] == f'{RECORDED["PySGG"]["predcls"]["mR@50"]:.4f}'
    assert any(
        line.startswith('vg150: may be compared with TDE 2002.11949 (VG150 test)') for line in lines
    )
    _, out = evaluate('predcls')
    assert 'no published table: these figures are of other data' in out
    # Figures that skip absent predicates are not comparable with any.
    _, out = evaluate('predcls', '--absent', 'skip', meta={**META, 'convention': 'vg150'})
    assert 'may be compared' not in out


def test_training_annotations_travel_in_the_file(evaluate, tmp_path):
    """Zero-shot triplets and groups come from the metric, without the training set."""
    boxes = [dict(id=i, image_id=0, category_id=i, bbox=[0, 0, 1, 1], area=1) for i in range(4)]
    seen = [(0, 1, p, n) for p, n in enumerate([9, 8, 7, 6, 5, 4, 3, 2, 1, 1, 1, 1])]
    content = dict(
        images=[dict(id=0, file_name='', width=9, height=9)],
        categories=[dict(id=i, name=name) for i, name in enumerate(META['classes'])],
        predicates=[dict(id=i, name=name) for i, name in enumerate(META['predicates'])],
        annotations=boxes,
        relations=[
            dict(image_id=0, subject_id=s, object_id=o, predicate_id=p)
            for s, o, p, count in seen
            for _ in range(count)
        ],
    )
    (tmp_path / 'train.json').write_text(json.dumps(content))
    options = dict(train_ann_file=str(tmp_path / 'train.json'), predicate_groups='thirds')
    _, out = evaluate('predcls', '--json', **options)
    result = json.loads(out)['figures']['motifs']
    expected, _ = evaluate('predcls', '--json', **options, convention='motifs')
    for key in ('zR@20', 'ngzR@50', 'head_mR@50', 'body_mR@50', 'tail_mR@20'):
        assert result[key] == pytest.approx(expected[f'sg/{key}']), key
    assert result['zR@20'] != result['R@20']
    assert result['head_mR@20'] != result['tail_mR@20']
    _, out = evaluate(
        'predcls', '--json', '--groups', 'thirds', train_ann_file=options['train_ann_file']
    )
    assert json.loads(out)['figures']['motifs']['head_mR@50'] == result['head_mR@50']


def test_samples_keep_predictions_and_ground_truth(tmp_path):
    dump(tmp_path / 'out.pkl', 'sgcls')
    samples = pickle.loads((tmp_path / 'out.pkl').read_bytes())
    assert len(samples) == 40
    for sample, original in zip(samples, data_samples('sgcls'), strict=True):
        assert torch.equal(sample['gt_relations']['pairs'], original.gt_relations.pairs)
        assert torch.equal(sample['pred_instances']['bboxes'], original.pred_instances.bboxes)
    assert samples[0]['scene_graph_meta'] is samples[39]['scene_graph_meta']  # stored once


def test_a_wrong_file_exits_with_1_and_a_wrong_flag_with_2(tmp_path, capsys):
    file = tmp_path / 'out.pkl'
    assert main(['sg-eval', str(file)]) == 1
    assert 'does not exist: write it with `gclip test' in capsys.readouterr().err
    file.write_bytes(b'no pickle')
    assert main(['sg-eval', str(file)]) == 1
    assert 'is not a readable pickle' in capsys.readouterr().err
    file.write_bytes(pickle.dumps([dict(pred_instances={})]))
    assert main(['sg-eval', str(file)]) == 1
    assert 'holds no scene graphs with their ground truth' in capsys.readouterr().err
    dump(file, 'predcls')
    assert main(['sg-eval', str(file), '--groups', 'thirds']) == 1
    assert 'needs train_ann_file' in capsys.readouterr().err
    for wrong in (['--k', '0'], ['--convention', 'vg151'], ['--absent', 'mean']):
        with pytest.raises(SystemExit) as caught:
            main(['sg-eval', str(file), *wrong])
        assert caught.value.code == 2
