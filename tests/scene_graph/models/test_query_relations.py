"""A detector with an EGTR head: what is read of the decoder, training, prediction, errors."""

import copy

import pytest
import torch
from mmdet.models.layers import ConditionalAttention
from mmdet.registry import MODELS
from mmengine.config import ConfigDict

from gclip_mm.scene_graph.models.detectors.adapters.decoder_queries import (
    decoder_of,
    recorded_queries,
)
from tests.scene_graph.models.conftest import model_cfg, sample_of, some_counts
from tests.scene_graph.models.test_overfit import recall, train
from tests.scene_graph.models.tiny_detectors import detector_cfg


def deformable():
    """A DeformableDETR with the parts of the tiny DINO."""
    cfg = detector_cfg('DINO')
    cfg.update(type='DeformableDETR', with_box_refine=True, as_two_stage=False)
    cfg.bbox_head.type = 'DeformableDETRHead'
    del cfg['dn_cfg']
    return cfg


DETECTORS = {
    'DETR': lambda: detector_cfg('DETR'),
    'DeformableDETR': deformable,
    'DINO': lambda: detector_cfg('DINO'),
}
NAMES = list(DETECTORS)


def wrapped(name, head=(), **options):
    scene = model_cfg()['scene_head']
    scene.update(in_channels=32 if name == 'DETR' else 256, in_levels=(0, -1))
    return ConfigDict(
        dict(
            type='SceneGraphDetector',
            detector=DETECTORS[name](),
            relation_head=dict(
                type='EGTRHead',
                num_predicates=10,
                frequency_bias=dict(type='LogCountBias'),
                **dict(head),
            ),
            scene_head=scene,
            **{'protocol': 'sgdet', 'freeze_detector': False, **options},
        )
    )


def build(name, **options):
    torch.manual_seed(0)
    model = MODELS.build(wrapped(name, **options))
    model.init_weights()
    model.relation_head.frequency_bias.set_counts(*some_counts())
    return model


@pytest.fixture
def batch(make_batch):
    return make_batch(range(3))


def processed(model, batch, training):
    return model.data_preprocessor(copy.deepcopy(batch), training)


@pytest.mark.parametrize('name', NAMES)
def test_recorded_queries_give_the_attention_of_the_detector(batch, name):
    """Their scaled products give the weights that PyTorch's attention returns."""
    detector = build(name).eval().detector
    data = processed(detector, batch, False)
    given, states = [], []
    layers = [layer.self_attn.attn for layer in detector.decoder.layers]
    handles = [
        attn.register_forward_pre_hook(
            lambda _, args, kwargs: given.append((args, kwargs)), with_kwargs=True
        )
        for attn in layers
    ]
    handles.append(
        detector.bbox_head.register_forward_hook(
            lambda _, args, output: states.append((args[0][-1], output[0][-1], output[1][-1]))
        )
    )
    with torch.no_grad(), recorded_queries(detector) as recorder:
        detector.predict(data['inputs'], data['data_samples'], rescale=False)
    for handle in handles:
        handle.remove()
    found = recorder.states(detector)
    assert len(found.queries) == len(found.keys) == len(layers) > 1
    for attn, (args, kwargs), query, key in zip(
        layers, given, found.queries, found.keys, strict=True
    ):
        with torch.no_grad():
            kwargs = {**kwargs, 'need_weights': True, 'average_attn_weights': False}
            expected = attn(*args, **kwargs)[1]  # (B, heads, Q, Q)
        size = query.shape[2] // attn.num_heads
        query, key = (x.unflatten(2, (-1, size)).transpose(1, 2) for x in (query, key))
        weights = (query @ key.transpose(2, 3) / size**0.5).softmax(dim=-1)
        torch.testing.assert_close(weights, expected, atol=1e-5, rtol=1e-4)
    for value, expected in zip((found.hidden, found.logits, found.boxes), states[0], strict=True):
        assert torch.equal(value, expected)
    modules = [*layers, detector.bbox_head]
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in modules)


@pytest.mark.parametrize('name', NAMES)
def test_losses_of_the_detector_are_its_own(batch, name):
    model = build(name).train()
    data = processed(model, batch, True)
    state = copy.deepcopy(model.state_dict())
    torch.manual_seed(1)
    alone = model.detector.loss(copy.deepcopy(data['inputs']), copy.deepcopy(data['data_samples']))
    model.load_state_dict(state)  # running statistics
    torch.manual_seed(1)
    losses = model(**data, mode='loss')
    for key, value in alone.items():
        assert torch.equal(torch.as_tensor(value), torch.as_tensor(losses[key])), key
    assert {'loss_predicate', 'loss_connectivity', 'loss_scene'} == {
        key for key in set(losses) - set(alone) if 'loss' in key
    }
    total, _ = model.parse_losses(losses)
    total.backward()
    unused = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert unused == []
    # The relations train the decoder, not only the head.
    model.zero_grad()
    model(**data, mode='loss')['loss_connectivity'].backward()
    attn = model.detector.decoder.layers[0].self_attn.attn
    assert attn.in_proj_weight.grad.abs().sum() > 0


def test_denoising_queries_are_not_read(batch):
    """In training they hold noisy ground truth, and come before the others."""
    model = build('DINO').train()
    results = []
    for seed in (0, 1):
        data = processed(model, batch, True)
        if seed:
            for sample in data['data_samples']:
                sample.gt_instances.labels = 9 - sample.gt_instances.labels
        torch.manual_seed(seed)
        with recorded_queries(model.detector) as recorder:
            model.detector.loss(data['inputs'], data['data_samples'])
        assert recorder._attention[0][0].shape[1] > model.detector.num_queries
        results.append(recorder.states(model.detector))
    one, other = results
    assert one.hidden.shape[1] == model.detector.num_queries
    for a, b in zip(
        (*one.queries, *one.keys, one.hidden),
        (*other.queries, *other.keys, other.hidden),
        strict=True,
    ):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize('name', NAMES)
def test_prediction_has_an_object_for_each_query(batch, predict, name):
    model = build(name)
    graphs = predict(model, batch)
    plain = model.detector.eval()
    data = processed(plain, batch, False)
    with torch.no_grad():
        expected = plain.predict(data['inputs'], data['data_samples'], rescale=True)
    for graph, detections in zip(graphs, expected, strict=True):
        objects, relations = graph.pred_instances, graph.pred_relations
        count = len(objects)
        assert 0 < count <= plain.num_queries
        assert (objects.scores.diff() <= 0).all()
        # The detector may give a query several classes; the best is the same.
        best = detections.pred_instances.scores.max()
        torch.testing.assert_close(objects.scores[0], best)
        row = detections.pred_instances.scores.argmax()
        torch.testing.assert_close(objects.bboxes[0], detections.pred_instances.bboxes[row])
        assert objects.labels[0] == detections.pred_instances.labels[row]
        assert relations.pairs.shape == (count * (count - 1), 2)
        assert (relations.pairs[:, 0] != relations.pairs[:, 1]).all()
        assert relations.scores.shape == (count * (count - 1), 10)
        assert ((relations.scores >= 0) & (relations.scores <= 1)).all()
        assert graph.pred_scene.score.shape == (6,)


def test_prediction_sees_no_truth(batch, predict):
    model = build('DINO')
    blind = copy.deepcopy(batch)
    for sample in blind['data_samples']:
        del sample.gt_instances, sample.gt_relations, sample.gt_scene
    for one, other in zip(predict(model, batch), predict(model, blind), strict=True):
        assert torch.equal(one.pred_relations.scores, other.pred_relations.scores)
        assert torch.equal(one.pred_instances.bboxes, other.pred_instances.bboxes)


def test_options_of_prediction_are_applied(batch, predict):
    whole = predict(build('DINO'), batch)[0]
    relation = dict(max_objects=5, max_pairs=8, max_relations=4)
    few = predict(build('DINO', test_cfg=dict(relation=relation)), batch)[0]
    assert len(few.pred_instances) == 5
    assert torch.equal(few.pred_instances.bboxes, whole.pred_instances.bboxes[:5])
    assert len(few.pred_relations.pairs) == 4
    position = {tuple(p): i for i, p in enumerate(whole.pred_relations.pairs.tolist())}
    rows = [position[tuple(pair)] for pair in few.pred_relations.pairs.tolist()]
    torch.testing.assert_close(few.pred_relations.scores, whole.pred_relations.scores[rows])


@pytest.mark.parametrize('most', [None, 5, 50])
def test_limit_of_objects_names_its_key(most):
    model = build('DINO', test_cfg=dict(relation=dict(max_objects=most)))
    limit = ('test_cfg.relation.max_objects', 5) if most == 5 else ('detector.num_queries', 20)
    assert model.relations.object_limit == (f'model.{limit[0]}', limit[1])


def test_duplicates_are_suppressed_on_demand(batch, predict):
    """The published head does not; all boxes of this untrained DETR are about the same."""
    whole = predict(build('DETR'), batch)[0]
    cfg = dict(relation=dict(nms_iou_thr=0.5))
    suppressed = predict(build('DETR', test_cfg=cfg), batch)[0]
    assert 0 < len(suppressed.pred_instances) < len(whole.pred_instances)


@pytest.mark.parametrize('name', NAMES)
def test_frozen_detector_does_not_change(batch, name):
    model = build(name, freeze_detector=True).train()
    before = copy.deepcopy(model.state_dict())
    train(model, batch, dict(type='NormClip', max_norm=2.0), 2)
    after = model.state_dict().items()
    changed = {key.split('.')[0] for key, value in after if not torch.equal(value, before[key])}
    assert changed == {'relation_head', 'scene_head'}


def test_image_without_objects_and_relations_trains(make_batch, pictures):
    empty = pictures['keep_objects'](sample_of(0), 0)
    model = build('DINO').train()
    for items in ([empty], [empty, sample_of(1)]):
        data = processed(model, make_batch(copy.deepcopy(items)), True)
        total, _ = model.parse_losses(model(**data, mode='loss'))
        model.zero_grad()
        total.backward()
        assert total.isfinite()
        assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


def test_ignored_relations_are_not_learned(batch):
    """Those that ``PredicateResampling`` drops have a negative label."""
    model = build('DINO').train()
    data = processed(model, batch, True)
    for sample in data['data_samples']:
        sample.gt_relations.labels.fill_(-1)
    losses = model(**data, mode='loss')
    assert float(losses['loss_predicate']) == 0
    assert 'acc_predicate' not in losses


def test_detector_and_head_learn_from_scratch(make_batch, predict):
    """Objects and relations; results/scene_graph/overfit.py trains eight pictures to the end."""
    model = build('DINO')
    assert recall(predict(model, make_batch(range(2)))) < 0.1
    train(model, make_batch(range(2)), dict(type='NormClip', max_norm=20.0), 80)
    assert recall(predict(model, make_batch(range(2)))) > 0.6


# ---- errors ----------------------------------------------------------------------------------


@pytest.mark.parametrize('protocol', ['predcls', 'sgcls'])
def test_protocol_with_given_boxes_raises(protocol):
    with pytest.raises(ValueError, match=f"protocol='{protocol}' gives boxes, but an EGTRHead"):
        build('DINO', protocol=protocol)
    model = build('DINO')
    with pytest.raises(ValueError, match="use protocol='sgdet', or a RelationHead"):
        model.set_protocol(protocol)
    assert model.protocol.value == 'sgdet'


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(detector_loss=False), 'EGTRHead reads the decoder.*detector_loss=True, or freeze'),
        (
            dict(
                roi_extractor=dict(
                    type='SingleRoIExtractor',
                    out_channels=256,
                    featmap_strides=[16, 32],
                    roi_layer=dict(type='RoIAlign', output_size=5),
                )
            ),
            'EGTRHead reads no RoI maps: remove roi_extractor',
        ),
        (
            dict(train_cfg=dict(relation=dict(iou_thr=0.5))),
            "train_cfg.relation has no key 'iou_thr' for a head that reads queries; valid keys: no",
        ),
        (dict(test_cfg=dict(relation=dict(iou=1))), "no key 'iou'.*valid keys: max_objects, max_p"),
        (dict(head=dict(num_classes=7)), 'relation_head.num_classes=7, but the detector of type '),
        (dict(head=dict(num_layers=6)), 'relation_head.num_layers=6, but the detector of type DI'),
        (dict(head=dict(embed_dims=64)), 'relation_head.embed_dims=64, but .* has 256'),
    ],
)
def test_bad_config_raises_with_its_key(change, message):
    with pytest.raises(ValueError, match=message):
        build('DINO', **change)


@pytest.mark.parametrize('name', ['FasterRCNN', 'RetinaNet', 'Mask2Former', 'SceneGraphRCNN'])
def test_detector_without_readable_decoder_raises(name):
    head = dict(type='EGTRHead', num_predicates=10)
    if name == 'SceneGraphRCNN':
        cfg = model_cfg(protocol='sgdet')
        cfg.update(relation_head=head, scene_head=None)
        del cfg['test_cfg']['relation']
    else:
        cfg = dict(type='SceneGraphDetector', detector=detector_cfg(name), relation_head=head)
    message = f'of a DETR, DeformableDETR or DINO; the detector of this config is a {name}'
    with pytest.raises(ValueError, match=message):
        MODELS.build(ConfigDict(cfg))


@pytest.mark.parametrize('name', ['DDQDETR', 'GroundingDINO', 'ConditionalDETR', 'DABDETR'])
def test_decoder_of_another_kind_raises(name):
    """Queries are selected, classes are words, or the attention has no common projection."""
    cls = MODELS.get(name)
    detector = cls.__new__(cls)
    torch.nn.Module.__init__(detector)
    detector.decoder = build('DINO').detector.decoder
    if name in ('ConditionalDETR', 'DABDETR'):
        for layer in detector.decoder.layers:
            layer.self_attn = ConditionalAttention(embed_dims=256, num_heads=8)
    with pytest.raises(ValueError, match=f'EGTRHead reads .*; the detector .* is a {name}'):
        decoder_of(detector, 'EGTRHead')


def test_training_without_match_costs_raises(batch):
    cfg = wrapped('DINO')
    del cfg['detector']['train_cfg']
    model = MODELS.build(cfg).train()
    with pytest.raises(ValueError, match='set detector.train_cfg.assigner'):
        model(**processed(model, batch, True), mode='loss')
