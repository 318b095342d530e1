"""Exported models give PyTorch's results, at sizes and numbers of objects other than the traced."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData
from torch.nn import functional as F

from gclip_mm.cli import main
from gclip_mm.scene_graph.export.graphs import DetectorGraph, RelationGraph
from gclip_mm.scene_graph.models.contexts.sequences import Padding, count_by, sum_by
from gclip_mm.scene_graph.models.pooling import average_to
from gclip_mm.scene_graph.models.task_modules import candidate_pairs

onnxruntime = pytest.importorskip('onnxruntime')
pytest.importorskip('onnx')

CONFIGS = 'configs/scene_graph/shapescenes'
NAMES = dict(
    classes=[f'c{i}' for i in range(10)],
    predicates=[f'p{i}' for i in range(10)],
    scenes=[f's{i}' for i in range(6)],
)


def trained(tmp_path, name, **changes):
    """Config and checkpoint of a model with random weights, as a training leaves them."""
    init_default_scope('mmdet')
    cfg = Config.fromfile(f'{CONFIGS}/{name}_shapescenes.py')
    cfg.merge_from_dict(changes)
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    counts = np.random.default_rng(0).integers(0, 5, (10, 10, 10))
    model.relation_head.frequency_bias.set_counts(counts, np.ones((10, 10)))
    debias = model.relation_head.debias
    if hasattr(debias, 'set_counts'):
        counts[:, :, 3] = 0  # a predicate that is never predicted
        debias.set_counts(counts, np.ones((10, 10)))
    elif debias is not None:
        debias.average.normal_()
        debias.weight.fill_(0.5)
    with torch.no_grad():
        for name_, weight in model.named_parameters():
            if 'frequency_bias' not in name_:
                weight.add_(torch.randn_like(weight) * 0.02)
        if not model.protocol.has_boxes:
            # Surer of its classes than at random, or no object would pass the threshold.
            model.roi_head.bbox_head.fc_cls.weight.mul_(4)
    cfg.dump(str(tmp_path / 'config.py'))
    checkpoint = dict(state_dict=model.state_dict(), meta=dict(dataset_meta=NAMES))
    torch.save(checkpoint, tmp_path / 'model.pth')
    return model.eval(), str(tmp_path / 'config.py'), str(tmp_path / 'model.pth')


def export(tmp_path, config, checkpoint, *extra):
    out = str(tmp_path / 'out')
    return main(['export-onnx', config, checkpoint, '--out', out, '--json', *extra])


@pytest.mark.parametrize(
    'name',
    [
        'identity_predcls',
        'rnn_sgdet',
        'crnn_predcls',
        'transformer_sgcls',
        'imp_predcls',
    ],
)
def test_every_context_and_protocol_equals_pytorch(tmp_path, capsys, name):
    model, config, checkpoint = trained(tmp_path, name)
    assert export(tmp_path, config, checkpoint) == 0
    result = json.loads(capsys.readouterr().out)
    assert result['protocol'] == name.split('_')[1] and result['classes'] == NAMES['classes']
    assert len(result['differences']) == 3  # the last with one object, which has no pair
    for difference in result['differences']:
        assert difference['predicate_scores'] < 1e-5 and difference['object_scores'] < 1e-5
        assert difference['scene_scores'] < 1e-5
    check_runtime(model, tmp_path / 'out')


@pytest.mark.parametrize('debias', ['LogitAdjustment', 'TDE'])
def test_debiasing_is_exported(tmp_path, capsys, debias):
    changes = {'model.relation_head.debias': dict(type=debias)}
    model, config, checkpoint = trained(tmp_path, 'rnn_predcls', **changes)
    assert export(tmp_path, config, checkpoint) == 0
    check_runtime(model, tmp_path / 'out')
    model.relation_head.debias = None
    with pytest.raises(AssertionError):
        check_runtime(model, tmp_path / 'out')


def check_runtime(model, folder):
    """The runtime equals the model's own ``predict`` on two pictures that are resized."""
    from gclip_mm.scene_graph.export.runtime import OnnxSceneGraph

    exported = OnnxSceneGraph(folder)
    rng = np.random.default_rng(1)
    for height, width, count in ((256, 320, 4), (90, 60, 9), (90, 60, 1)):
        image = rng.integers(0, 255, (height, width, 3), dtype=np.uint8)
        start = rng.uniform(0, 0.5, (count, 2)) * (width, height)
        boxes = np.hstack((start, start + rng.uniform(0.1, 0.5, (count, 2)) * (width, height)))
        labels = rng.integers(10, size=count)
        expected = predict(model, image, boxes, labels)
        given = {'predcls': (boxes, labels), 'sgcls': (boxes,), 'sgdet': ()}[model.protocol.value]
        graph = exported(image, *given)
        if model.protocol.value == 'sgdet':
            assert len(graph['bboxes'])
        np.testing.assert_allclose(
            graph['bboxes'], expected.pred_instances.bboxes, rtol=1e-4, atol=1e-3
        )
        np.testing.assert_array_equal(graph['labels'], expected.pred_instances.labels)
        np.testing.assert_allclose(graph['scores'], expected.pred_instances.scores, atol=1e-5)
        np.testing.assert_array_equal(graph['pairs'], expected.pred_relations.pairs)
        np.testing.assert_allclose(graph['rel_scores'], expected.pred_relations.scores, atol=1e-5)
        np.testing.assert_allclose(graph['scene_scores'], expected.pred_scene.score, atol=1e-5)


def predict(model, image, boxes, labels):
    """The data sample of the test pipeline's steps, and the model's prediction on it."""
    import mmcv

    resized = mmcv.imrescale(image, (160, 128))
    height, width = resized.shape[:2]
    factors = width / image.shape[1], height / image.shape[0]
    sample = DetDataSample(
        metainfo=dict(
            img_shape=(height, width), ori_shape=image.shape[:2], scale_factor=factors, img_id=0
        )
    )
    scaled = torch.from_numpy(boxes * np.tile(factors, 2)).float()
    sample.gt_instances = InstanceData(bboxes=scaled, labels=torch.from_numpy(labels))
    inputs = torch.from_numpy(np.ascontiguousarray(resized.transpose(2, 0, 1)))
    with torch.no_grad():
        return model.test_step(dict(inputs=[inputs], data_samples=[sample]))[0]


def test_a_detector_that_finds_nothing_gives_an_empty_graph(tmp_path, capsys):
    _, config, checkpoint = trained(tmp_path, 'rnn_sgdet')
    strict = ['--cfg-options', 'model.test_cfg.rcnn.score_thr=2.0']
    assert export(tmp_path, config, checkpoint, *strict) == 0
    from gclip_mm.scene_graph.export.runtime import OnnxSceneGraph

    graph = OnnxSceneGraph(tmp_path / 'out')(np.zeros((64, 64, 3), np.uint8))
    assert graph['pairs'].shape == (0, 2) and graph['rel_scores'].shape == (0, 10)
    with pytest.raises(ValueError, match="protocol 'sgdet' takes no bboxes"):
        OnnxSceneGraph(tmp_path / 'out')(np.zeros((64, 64, 3), np.uint8), [[0, 0, 9, 9]])


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'model.test_cfg.rcnn.nms.type': 'soft_nms'}, "test_cfg.rcnn.nms.type must be 'nms'"),
        ({'model.relation_head.fc_dim': 64}, 'the checkpoint belongs to another model'),
        ({'test_dataloader.dataset.pipeline.2.keep_ratio': False}, 'keep_ratio=True'),
    ],
)
def test_what_cannot_be_exported_is_an_error(tmp_path, capsys, changes, message):
    _, config, checkpoint = trained(tmp_path, 'rnn_sgdet')
    options = [f'{key}={value}' for key, value in changes.items()]
    assert export(tmp_path, config, checkpoint, '--cfg-options', *options) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / 'out').exists()


def test_a_difference_above_the_tolerance_is_a_failure(tmp_path, capsys):
    _, config, checkpoint = trained(tmp_path, 'identity_predcls')
    assert export(tmp_path, config, checkpoint, '--tolerance', '1e-12') == 1
    assert 'ONNX Runtime differs from PyTorch by' in capsys.readouterr().err


# -- Parts that take another way while a graph is exported -----------------------------------------


@pytest.fixture
def exporting(monkeypatch):
    monkeypatch.setattr(torch.onnx, 'is_in_onnx_export', lambda: True)


@pytest.mark.parametrize(('length', 'size'), [(14, 7), (7, 3), (5, 5), (3, 4)])
def test_pooling_by_matrices_equals_adaptive_pooling(exporting, length, size):
    maps = torch.rand(2, 3, length, length + 1, dtype=torch.float64)
    expected = F.adaptive_avg_pool2d(maps, size)
    # The matrices are float32, exact for cells of 2, 4 or 8.
    torch.testing.assert_close(average_to(maps, size), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize('group', [[0, 0, 0, 2, 2, 3], [0, 0, 0], [1, 1]])
def test_padding_without_python_numbers_keeps_every_row(exporting, group):
    group = torch.tensor(group)
    rows = torch.rand(len(group), 4)
    padding = Padding(group)
    padded = padding.pad(rows)
    assert torch.equal(padding.unpad(padded), rows)
    assert padded.shape[:2] == padding.mask.shape
    for sequence in group.unique().tolist():
        assert torch.equal(padded[sequence][padding.mask[sequence]], rows[group == sequence])
    assert (padding.lengths >= 1).all()
    assert padding.lengths[group.unique()].tolist() == group.unique(return_counts=True)[1].tolist()


def test_sums_by_index_equal_index_add(exporting):
    rows, index = torch.rand(7, 3), torch.tensor([0, 2, 2, 4, 0, 2, 1])
    expected = torch.zeros(5, 3).index_add(0, index, rows)
    torch.testing.assert_close(sum_by(rows, index, 5), expected)
    assert count_by(index, 5).tolist() == torch.bincount(index, minlength=5).tolist()


def test_the_detector_graph_pads_as_the_preprocessor(tmp_path):
    model, *_ = trained(tmp_path, 'rnn_sgdet')
    image = torch.randint(0, 255, (3, 70, 45), dtype=torch.uint8)
    expected = model.data_preprocessor(dict(inputs=[image], data_samples=None))['inputs']
    torch.testing.assert_close(DetectorGraph(model)._preprocess(image[None].float()), expected)


@pytest.mark.parametrize('max_pairs', [None, 6, 1000])
@pytest.mark.parametrize('require_overlap', [False, True])
def test_the_relation_graph_pairs_as_the_model(tmp_path, max_pairs, require_overlap):
    model, *_ = trained(tmp_path, 'identity_predcls')
    options = dict(max_pairs=max_pairs, require_overlap=require_overlap)
    model.relation_test_cfg = {**model.relation_test_cfg, **options}
    start = torch.rand(6, 2) * 60
    boxes, scores = torch.cat([start, start + 5 + torch.rand(6, 2) * 40], dim=1), torch.rand(6)
    expected = candidate_pairs(boxes, scores, **options)
    assert 0 < len(expected) <= 30
    assert torch.equal(RelationGraph(model)._pairs(boxes, scores), expected)
