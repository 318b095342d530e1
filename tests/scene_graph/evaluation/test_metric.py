"""SceneGraphMetric on data samples against scene_graph_recall and CocoMetric."""

import copy
import json
import math

import numpy as np
import pytest
import torch
from mmdet.evaluation import CocoMetric
from mmdet.registry import METRICS
from mmdet.structures import DetDataSample
from mmengine.evaluator import Evaluator
from mmengine.logging import MMLogger
from mmengine.registry import DefaultScope
from mmengine.structures import InstanceData, LabelData

import gclip_mm.scene_graph  # noqa: F401
from gclip_mm.scene_graph.evaluation import CONVENTIONS, SceneGraphMetric, scene_graph_recall

META = dict(
    classes=('dog', 'table', 'cup'), predicates=('on', 'left of', 'under'), scenes=('a', 'b')
)
SCALE = (2.0, 4.0)


@pytest.fixture(autouse=True, scope='module')
def mmdet_scope():
    with DefaultScope.overwrite_default_scope('mmdet'):
        yield


def make_samples(num_images=12, seed=0):
    """Data samples with predictions, and the same content as dicts in original-image pixels."""
    rng = np.random.default_rng(seed)
    samples, predictions, truths = [], [], []
    for i in range(num_images):
        n = int(rng.integers(2, 6))
        corner = rng.uniform(0, 60, (n, 2))
        boxes = np.hstack((corner, corner + rng.uniform(10, 30, (n, 2))))
        labels = rng.integers(0, 3, n)
        ends = [rng.choice(n, 2, replace=False) for _ in range(3 if i else 0)]
        relations = np.array([(s, o, rng.integers(0, 3)) for s, o in ends], int).reshape(-1, 3)
        m = int(rng.integers(0, 6)) if i != 3 else 0
        order = rng.integers(0, n, m)
        pred_boxes = boxes[order] + rng.normal(0, 1, (m, 4))
        pairs = np.array([(s, o) for s in range(m) for o in range(m) if s != o], int).reshape(-1, 2)
        prediction = dict(
            bboxes=pred_boxes,
            labels=labels[order],
            scores=rng.uniform(size=m),
            pairs=pairs,
            rel_scores=rng.uniform(size=(len(pairs), 3)),
        )
        sample = DetDataSample(
            metainfo=dict(img_id=i, img_path=f'{i}.jpg', ori_shape=(100, 100), scale_factor=SCALE)
        )
        scale = torch.tensor(SCALE).repeat(2)
        sample.gt_instances = InstanceData(
            bboxes=torch.tensor(boxes).float() * scale, labels=torch.tensor(labels)
        )
        sample.ignored_instances = InstanceData(
            bboxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.long)
        )
        sample.gt_relations = InstanceData(
            pairs=torch.tensor(relations[:, :2]), labels=torch.tensor(relations[:, 2])
        )
        sample.pred_instances = InstanceData(
            **{k: torch.tensor(prediction[k]) for k in ('bboxes', 'labels', 'scores')}
        )
        sample.pred_relations = InstanceData(
            pairs=torch.tensor(pairs), scores=torch.tensor(prediction['rel_scores'])
        )
        samples.append(sample)
        predictions.append(prediction)
        truths.append(dict(bboxes=boxes, labels=labels, relations=relations))
    return samples, predictions, truths


def evaluate(samples, meta=META, batch=5, **kwargs):
    evaluator = Evaluator(METRICS.build(dict(type='SceneGraphMetric', **kwargs)))
    evaluator.dataset_meta = meta
    for i in range(0, len(samples), batch):
        evaluator.process(samples[i : i + batch])
    return evaluator.evaluate(len(samples))


@pytest.mark.parametrize('convention', [None, *CONVENTIONS])
def test_recall_equals_scene_graph_recall(convention):
    samples, predictions, truths = make_samples()
    unseen = {(0, 1, 0), (1, 1, 1), (2, 0, 2), (1, 0, 2), (0, 2, 1)}
    result = evaluate(
        samples, protocol='SGCls', convention=convention, zero_shot_triplets=unseen, ks=(2, 10)
    )
    expected = scene_graph_recall(
        predictions,
        truths,
        ks=(2, 10),
        zero_shot_triplets=unseen,
        **CONVENTIONS.get(convention, {}),
    )
    assert 0 < expected['R@10'] < 1 and expected['zR@10'] > 0
    hidden = [key for key in expected if 'phr' in key]  # reported in SGDet only
    assert bool(hidden) == (convention in ('psg', 'vrd'))
    assert not any(f'sg/{key}' in result for key in hidden)
    expected = {key: value for key, value in expected.items() if key not in hidden}
    for key, value in expected.items():
        assert result[f'sg/{key}'] == pytest.approx(value, nan_ok=True), key


def test_convention_of_data_set_applies_and_options_override_it():
    samples, predictions, truths = make_samples()
    by_convention = scene_graph_recall(predictions, truths, **CONVENTIONS['vg150'])
    plain = scene_graph_recall(predictions, truths)
    assert by_convention['R@20'] != plain['R@20']  # an image without predictions
    meta = {**META, 'convention': 'vg150'}
    assert evaluate(samples, meta)['sg/R@20'] == pytest.approx(by_convention['R@20'])
    overridden = evaluate(samples, meta, empty_pred='zero', iou_plus_one=False)
    assert overridden['sg/R@20'] == pytest.approx(plain['R@20'])
    with pytest.raises(ValueError, match="convention must be None or one of.*'vg151'"):
        evaluate(samples, {**META, 'convention': 'vg151'})


def test_box_map_equals_coco_metric():
    samples, _, _ = make_samples()
    samples[2].ignored_instances = samples[2].gt_instances[:1]
    samples[2].gt_instances = samples[2].gt_instances[1:]
    samples[2].gt_relations = InstanceData(
        pairs=torch.zeros(0, 2, dtype=torch.long), labels=torch.zeros(0, dtype=torch.long)
    )
    result = evaluate(samples)
    coco = CocoMetric(metric='bbox')
    coco.dataset_meta = META
    scale = torch.tensor(SCALE).repeat(2)
    for sample in samples:
        anns = []
        for instances, ignored in ((sample.gt_instances, 0), (sample.ignored_instances, 1)):
            anns += [
                dict(bbox=box, bbox_label=label, ignore_flag=ignored)
                for box, label in zip(
                    (instances.bboxes.double() / scale).tolist(),
                    instances.labels.tolist(),
                    strict=True,
                )
            ]
        coco.process({}, [{**sample.to_dict(), 'instances': anns}])
    expected = coco.evaluate(len(samples))
    assert 0.2 < expected['coco/bbox_mAP_50'] < 1
    for key, value in expected.items():
        assert result[key.replace('coco/', 'sg/')] == value, key


def test_second_evaluation_is_independent_of_first():
    samples, _, _ = make_samples()
    other, _, _ = make_samples(seed=1, num_images=7)
    metric = SceneGraphMetric()
    metric.dataset_meta = META
    results = []
    for batch in (samples, other, samples):
        metric.process({}, [sample.to_dict() for sample in batch])
        results.append(metric.evaluate(len(batch)))
    assert results[0] == results[2] != results[1]
    assert results[1] == evaluate(other)


def test_protocol_selects_reported_metrics():
    samples, _, _ = make_samples()
    keys = {p: set(evaluate(samples, protocol=p)) for p in ('predcls', 'sgcls', 'sgdet')}
    assert 'sg/A@50' in keys['predcls'] and 'sg/A@50' in keys['sgcls']
    assert 'sg/A@50' not in keys['sgdet']
    assert 'sg/bbox_mAP' in keys['sgcls'] and 'sg/bbox_mAP' in keys['sgdet']
    assert 'sg/bbox_mAP' not in keys['predcls']
    assert 'sg/bbox_mAP' in evaluate(samples, protocol='predcls', box_metric=True)
    assert not any('scene' in key for key in keys['sgdet'])
    assert not any('zR' in key for key in keys['sgdet'])


def test_scene_accuracy_is_reported_for_labelled_images():
    samples, _, _ = make_samples(num_images=4)
    for sample, label, score in zip(
        samples, (0, 1, 1, None), ([0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [1, 0]), strict=True
    ):
        if label is not None:
            sample.gt_scene = LabelData(label=torch.tensor([label]))
        sample.pred_scene = LabelData(score=torch.tensor(score))
    result = evaluate(samples)
    assert result['sg/scene_top1'] == pytest.approx(2 / 3)
    assert result['sg/scene_top5'] == 1.0


def test_classwise_reports_recall_of_each_predicate():
    samples, _, _ = make_samples()
    result = evaluate(samples, classwise=True)
    terms = [result[f'sg/{name}_R@50'] for name in META['predicates']]
    assert np.nanmean(terms) == pytest.approx(result['sg/mR@50'])
    terms = [result[f'sg/{name}_ngR@20'] for name in META['predicates']]
    assert np.nanmean(terms) == pytest.approx(result['sg/ngmR@20'])
    with pytest.raises(ValueError, match='classwise=True needs predicate names'):
        evaluate(samples, meta=dict(classes=META['classes']), classwise=True)


def train_file(path, relations):
    content = dict(
        images=[dict(id=0, file_name='', width=9, height=9)],
        categories=[dict(id=i + 1, name=name) for i, name in enumerate(META['classes'])],
        predicates=[dict(id=i + 1, name=name) for i, name in enumerate(META['predicates'])],
        annotations=[
            dict(id=i, image_id=0, category_id=i + 1, bbox=[0, 0, 1, 1], area=1) for i in range(3)
        ],
        relations=[
            dict(image_id=0, subject_id=s, object_id=o, predicate_id=p + 1) for s, o, p in relations
        ],
    )
    path.write_text(json.dumps(content))
    return str(path)


def test_train_ann_file_defines_zero_shot_triplets(tmp_path):
    samples, predictions, truths = make_samples()
    seen = [(0, 1, 0), (1, 0, 2), (2, 1, 1), (0, 2, 1)]
    result = evaluate(samples, train_ann_file=train_file(tmp_path / 'train.json', seen))
    everything = {(s, o, p) for s in range(3) for o in range(3) for p in range(3)}
    expected = scene_graph_recall(predictions, truths, zero_shot_triplets=everything - set(seen))
    for key in ('zR@20', 'ngzR@100'):
        assert result[f'sg/{key}'] == pytest.approx(expected[key])
    assert expected['zR@20'] != expected['R@20']
    (tmp_path / 'bad.json').write_text('{')
    with pytest.raises(ValueError, match=r'bad\.json is not valid JSON'):
        evaluate(samples, train_ann_file=str(tmp_path / 'bad.json'))


def test_no_annotated_relation_logs_warning(monkeypatch):
    samples, _, _ = make_samples()
    messages = []
    monkeypatch.setattr(MMLogger, 'warning', lambda self, message: messages.append(message))
    evaluate(samples)
    assert not messages
    for sample in samples:
        sample.gt_relations = InstanceData(
            pairs=torch.zeros(0, 2, dtype=torch.long), labels=torch.zeros(0, dtype=torch.long)
        )
    assert math.isnan(evaluate(samples)['sg/R@20'])
    (message,) = messages
    assert message.startswith(f'none of the {len(samples)} images has an annotated relation')


def test_no_predictions_give_zero_metrics():
    samples, _, _ = make_samples()
    for sample in samples:
        sample.pred_instances = InstanceData(
            bboxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.long), scores=torch.zeros(0)
        )
        sample.pred_relations = InstanceData(
            pairs=torch.zeros(0, 2, dtype=torch.long), scores=torch.zeros(0, 3)
        )
    result = evaluate(samples)
    assert result['sg/R@100'] == result['sg/ngmR@20'] == result['sg/bbox_mAP'] == 0.0
    assert math.isnan(evaluate(samples, empty_pred='skip')['sg/R@100'])


def test_process_does_not_modify_samples():
    samples, _, _ = make_samples(num_images=2)
    before = copy.deepcopy(samples)
    evaluate(samples)
    for sample, old in zip(samples, before, strict=True):
        assert torch.equal(sample.gt_instances.bboxes, old.gt_instances.bboxes)
        assert sorted(sample.keys()) == sorted(old.keys())
        assert sorted(sample.metainfo_keys()) == sorted(old.metainfo_keys())


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(protocol='sgdetect'), r"protocol must be one of \('predcls', 'sgcls', 'sgdet'\)"),
        (dict(convention='vg'), "convention must be None or one of.*'vg150'"),
        (dict(empty_pred='none'), 'empty_pred must be one of'),
        (dict(average='micro'), 'average must be one of'),
        (dict(ks=()), 'ks must be positive'),
        (dict(absent='ignore'), r"absent must be one of \('zero', 'skip'\)"),
        (dict(abscent='zero'), "no key 'abscent'; the keys of the recall are .*'absent'"),
        (dict(predicate_groups='halves'), r"predicate_groups must be one of \('thirds', 'bgnn'\)"),
        (dict(predicate_groups='thirds'), 'needs train_ann_file'),
    ],
)
def test_bad_option_raises_at_construction(options, message):
    with pytest.raises(ValueError, match=message):
        SceneGraphMetric(**options)


@pytest.mark.parametrize(
    ('key', 'message'),
    [
        ('pred_relations', 'has no pred_relations.pairs: .*scene-graph model'),
        ('gt_relations', 'has no gt_relations.pairs: .*LoadSceneGraphAnnotations'),
        ('gt_instances', 'image 0.jpg has no gt_instances.bboxes'),
    ],
)
def test_missing_field_raises_with_its_name(key, message):
    samples, _, _ = make_samples(num_images=1)
    delattr(samples[0], key)
    with pytest.raises(ValueError, match=message):
        evaluate(samples)


def test_missing_scale_factor_raises():
    samples, _, _ = make_samples(num_images=1)
    del samples[0].scale_factor
    samples[0].set_metainfo(dict(img_shape=(400, 200)))
    with pytest.raises(ValueError, match='was resized but has no scale_factor'):
        evaluate(samples)


def test_wrong_number_of_predicate_scores_raises():
    samples, _, _ = make_samples(num_images=2)
    relations = samples[1].pred_relations
    wide = torch.zeros(len(relations), 4)
    samples[1].pred_relations = InstanceData(pairs=relations.pairs, scores=wide)
    if len(relations) == 0:
        pytest.skip('no pairs drawn')
    with pytest.raises(ValueError, match='4 columns but num_predicates is 3'):
        evaluate(samples)
