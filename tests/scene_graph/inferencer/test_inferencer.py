"""SceneGraphInferencer: input types, outputs, errors."""

import copy
import json

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope, init_default_scope

import gclip_mm  # noqa: F401
from gclip_mm.datasets.shape_scenes import METAINFO
from gclip_mm.datasets.shape_scenes.sampling import draw_sample
from gclip_mm.scene_graph.inferencer import SceneGraphInferencer

CONFIG = 'configs/scene_graph/shapescenes/rnn_sgdet_shapescenes.py'


@pytest.fixture(scope='module', autouse=True)
def mmdet_scope():
    known = list(DefaultScope._instance_dict.items())
    init_default_scope('mmdet')
    yield
    DefaultScope._instance_dict.clear()
    DefaultScope._instance_dict.update(known)


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """A config and a checkpoint with random weights, in the format of a training run."""
    cfg = Config.fromfile(CONFIG)
    cfg.test_dataloader.dataset.data_root = 'nowhere/'
    cfg.model.test_cfg.rcnn.score_thr = 0.0
    torch.manual_seed(0)
    model = MODELS.build(copy.deepcopy(cfg.model))
    rng = np.random.default_rng(0)
    model.relation_head.frequency_bias.set_counts(
        rng.integers(0, 9, (10, 10, 10)), rng.integers(0, 9, (10, 10))
    )
    file = tmp_path_factory.mktemp('checkpoint') / 'last.pth'
    meta = dict(dataset_meta=METAINFO, cfg=cfg.pretty_text)
    torch.save(dict(state_dict=model.state_dict(), meta=meta), file)
    return cfg, str(file)


@pytest.fixture(scope='module')
def inferencer(trained):
    return SceneGraphInferencer(*trained, device='cpu', show_progress=False)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp('pictures')
    for i in range(3):
        cv2.imwrite(str(path / f'{i}.png'), draw_sample(0, 'val', i, (160, 128)).image)
    return path


def test_any_detector(folder):
    cfg = Config.fromfile('configs/scene_graph/shapescenes/rnn_sgdet_retinanet_shapescenes.py')
    cfg.model.detector.test_cfg.score_thr = 0.0
    torch.manual_seed(0)
    made = SceneGraphInferencer(cfg, device='cpu', show_progress=False)
    made.model.relation_head.frequency_bias.ready.fill_(True)
    result = made(str(folder / '0.png'))['predictions'][0]
    assert 0 < len(result['bboxes']) <= 12
    assert result['relations'][0]['score'] > 0
    given = dict(img_path=str(folder / '0.png'), bboxes=[[10, 10, 40, 40], [50, 50, 90, 90]])
    made = SceneGraphInferencer(cfg, device='cpu', show_progress=False, protocol='sgcls')
    made.model.relation_head.frequency_bias.ready.fill_(True)
    assert len(made(given)['predictions'][0]['relations']) == 2


def same(a, b):
    assert a['names'] == b['names']
    np.testing.assert_allclose(a['bboxes'], b['bboxes'], atol=1e-3)
    for one, other in zip(a['relations'], b['relations'], strict=True):
        assert one['score'] == pytest.approx(other['score'], rel=1e-3)


def test_path_folder_array_and_list_give_same_result(inferencer, folder):
    one = inferencer(str(folder / '1.png'))['predictions']
    every = inferencer(str(folder), batch_size=2)['predictions']
    array = inferencer(cv2.imread(str(folder / '1.png')))['predictions']
    paths = inferencer([str(folder / f'{i}.png') for i in (0, 1)])['predictions']
    assert len(one) == 1 and len(every) == 3 and len(paths) == 2
    for other in (every[1], array[0], paths[1]):
        same(one[0], other)


def test_prediction_dict_has_documented_content(inferencer, folder):
    graph = inferencer(str(folder / '0.png'))['predictions'][0]
    json.dumps(graph)
    assert graph['names'] == [METAINFO['classes'][label] for label in graph['labels']]
    assert len(graph['bboxes']) == len(graph['scores']) == len(graph['names']) > 1
    scores = [relation['score'] for relation in graph['relations']]
    assert scores == sorted(scores, reverse=True)
    for relation in graph['relations']:
        assert relation['predicate'] == METAINFO['predicates'][relation['predicate_label']]
        ends = graph['scores'][relation['subject']] * graph['scores'][relation['object']]
        assert relation['score'] == pytest.approx(ends * relation['predicate_score'], rel=1e-4)
    assert graph['scene']['name'] == METAINFO['scenes'][graph['scene']['label']]


def test_out_dir_receives_pictures_and_json(inferencer, folder, tmp_path):
    out = inferencer(
        str(folder), out_dir=str(tmp_path), no_save_pred=False, return_vis=True, pred_score_thr=0.1
    )
    names = sorted(p.name for p in (tmp_path / 'preds').iterdir())
    assert names == ['0.json', '1.json', '2.json']
    assert json.loads((tmp_path / 'preds' / '2.json').read_text()) == out['predictions'][2]
    assert sorted(p.name for p in (tmp_path / 'vis').iterdir()) == ['0.png', '1.png', '2.png']
    assert out['visualization'][0].shape[1] == 1400  # picture and graph side by side


def test_bgr_array_is_drawn_in_correct_colors(inferencer):
    blue = np.zeros((128, 160, 3), np.uint8)
    blue[..., 0] = 255  # BGR
    drawn = inferencer(blue, return_vis=True, pred_score_thr=1.0)['visualization'][0]
    assert (drawn == (0, 0, 255)).all(axis=2).sum() > 10000


def test_return_datasamples_returns_data_samples(inferencer, folder):
    sample = inferencer(str(folder / '0.png'), return_datasamples=True)['predictions'][0]
    assert 'pred_relations' in sample and 'pred_scene' in sample


def test_max_relations_limits_triplets(trained, folder):
    few = SceneGraphInferencer(*trained, device='cpu', show_progress=False, max_relations=2)
    assert len(few(str(folder / '0.png'))['predictions'][0]['relations']) == 2


def test_config_is_read_from_checkpoint(trained, inferencer, folder):
    alone = SceneGraphInferencer(weights=trained[1], device='cpu', show_progress=False)
    same(
        alone(str(folder / '0.png'))['predictions'][0],
        inferencer(str(folder / '0.png'))['predictions'][0],
    )


def test_predcls_uses_given_objects(trained, folder):
    predcls = SceneGraphInferencer(*trained, device='cpu', show_progress=False, protocol='predcls')
    objects = dict(bboxes=[[10, 10, 50, 60], [80, 20, 120, 70]], labels=[3, 0])
    path = str(folder / '0.png')
    for picture in (dict(img_path=path), dict(img=cv2.imread(path))):
        graph = predcls({**picture, **objects})['predictions'][0]
        np.testing.assert_allclose(graph['bboxes'], objects['bboxes'], atol=1e-3)
        assert graph['names'] == ['star', 'circle'] and graph['scores'] == [1, 1]
        assert {(r['subject'], r['object']) for r in graph['relations']} == {(0, 1), (1, 0)}
    with pytest.raises(ValueError, match="'predcls' of this model needs 'bboxes'"):
        predcls(path)
    with pytest.raises(ValueError, match='2 bboxes, but 1 labels'):
        predcls({'img_path': path, **objects, 'labels': [3]})
    by_name = predcls({'img_path': path, **objects, 'labels': ['star', 'circle']})['predictions'][0]
    assert by_name['names'] == ['star', 'circle']
    for wrong in ([3, 10], [3, -1], [3, 'stars'], [3, 0.5]):
        with pytest.raises(ValueError, match=r"indices in \[0, 10\) or names in \['circle'"):
            predcls({'img_path': path, **objects, 'labels': wrong})
    with pytest.raises(ValueError, match=r'x1 < x2 .* got \[80.0, 20.0, 40.0, 50.0\]'):
        predcls({'img_path': path, 'bboxes': [[0, 0, 9, 9], [80, 20, 40, 50]], 'labels': [3, 0]})


def test_bad_inputs_raise(trained, inferencer, tmp_path):
    with pytest.raises(FileNotFoundError, match='no picture at'):
        inferencer(str(tmp_path / 'none.jpg'))
    with pytest.raises(FileNotFoundError, match='no picture found in'):
        inferencer(str(tmp_path))
    with pytest.raises(ValueError, match=r'\(H, W, 3\), BGR; got shape \(9, 9\)'):
        inferencer(np.zeros((9, 9), np.uint8))
    with pytest.raises(ValueError, match=r"detects objects itself: remove \['bboxes'\]"):
        inferencer(dict(img=np.zeros((9, 9, 3), np.uint8), bboxes=[[0, 0, 5, 5]]))
    with pytest.raises(ValueError, match='boxes'):
        inferencer(dict(img_path='a.jpg', boxes=[]))
    with pytest.raises(ValueError, match='protocol must be one of'):
        SceneGraphInferencer(*trained, device='cpu', protocol='phrdet')
    with pytest.raises(ValueError, match='max_relations must be at least 1'):
        SceneGraphInferencer(*trained, device='cpu', max_relations=0)
    with pytest.raises(ValueError, match='needs a SceneGraphDetector, got FasterRCNN'):
        SceneGraphInferencer(
            'configs/quickstart/faster-rcnn_tiny_shapescenes.py', device='cpu', show_progress=False
        )
