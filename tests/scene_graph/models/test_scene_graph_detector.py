"""SceneGraphDetector: nine detectors train, predict, freeze and load, as they do alone."""

from __future__ import annotations

import copy
import re

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.runner.checkpoint import load_state_dict
from mmengine.structures import InstanceData

from gclip_mm.scene_graph.models.detectors.adapters.class_probs import (
    given_probs,
    predicted_probs,
)
from gclip_mm.scene_graph.models.weights import check_weights
from tests.scene_graph.models.conftest import sample_of, some_counts
from tests.scene_graph.models.tiny_detectors import (
    DETECTORS,
    WITH_MASKS,
    detector_cfg,
    faster_rcnn,
    with_masks,
    wrapped,
)

NAMES = list(DETECTORS)
PROTOCOLS = ['predcls', 'sgcls', 'sgdet']


def build(cfg, seed=0):
    torch.manual_seed(seed)
    model = MODELS.build(copy.deepcopy(cfg))
    model.init_weights()
    _livelier(model)
    if hasattr(model, 'relation_head'):
        model.relation_head.frequency_bias.set_counts(*some_counts())
    return model


def _livelier(model):
    """Raise class scores and box sizes, so that an untrained detector finds objects."""
    for name, param in model.named_parameters():
        if name.endswith(('retina_cls.bias', 'rtm_cls.0.bias')) or re.search(
            r'(multi_level_conv_(obj|cls)|cls_branches)\..*bias$', name
        ):
            torch.nn.init.zeros_(param)
        if '.rtm_reg.' in name and name.endswith('bias'):
            torch.nn.init.constant_(param, 2.0)  # boxes have no extent otherwise


def batch_of(masks):
    items = [sample_of(i) for i in range(2)]
    if masks:
        items = [with_masks(item, i) for i, item in enumerate(items)]
    return dict(
        inputs=[item['inputs'] for item in items],
        data_samples=[item['data_samples'] for item in items],
    )


def losses_of(model, batch, seed=1):
    data = model.data_preprocessor(copy.deepcopy(batch), model.training)
    torch.manual_seed(seed)
    return model(**data, mode='loss')


def graphs_of(model, batch):
    model.eval()
    with torch.no_grad():
        return model.test_step(copy.deepcopy(batch))


def values(loss):
    return loss if isinstance(loss, list) else [loss]


@pytest.fixture
def batch(request):
    """Two pictures, with masks for the detectors that need them."""
    parameters = getattr(request.node, 'callspec', None)
    return batch_of(parameters is not None and parameters.params.get('name') in WITH_MASKS)


# ---- the detector does what it does alone --------------------------------------------------


@pytest.mark.parametrize('name', NAMES)
def test_losses_are_those_of_the_plain_detector(batch, name):
    plain = build(detector_cfg(name)).train()
    model = build(wrapped(name, protocol='sgdet', detector_loss=True)).train()
    model.detector.load_state_dict(plain.state_dict())
    alone = losses_of(plain, batch)
    losses = losses_of(model, batch)
    assert set(alone) < set(losses)
    for key, loss in alone.items():
        for a, b in zip(values(loss), values(losses[key]), strict=True):
            assert torch.equal(a, b), key
    assert {'loss_predicate', 'loss_object', 'loss_scene'} == {
        key for key in set(losses) - set(alone) if 'loss' in key
    }
    total, _ = model.parse_losses(losses)
    total.backward()
    assert total.isfinite()
    lost = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert lost == []


@pytest.mark.parametrize('name', NAMES)
def test_detections_are_those_of_the_plain_detector(batch, name):
    model = build(wrapped(name, protocol='sgdet')).eval()
    plain = model.detector
    data = plain.data_preprocessor(copy.deepcopy(batch), False)
    inputs, samples = data['inputs'], data['data_samples']
    with torch.no_grad():
        if name == 'PanopticFPN':
            # It predicts segments; the boxes are those of its RoI head.
            x = plain.extract_feat(inputs)
            proposals = plain.rpn_head.predict(x, samples, rescale=False)
            expected = plain.roi_head.predict(x, proposals, samples, rescale=False)
        else:
            expected = [
                s.pred_instances
                for s in plain.predict(inputs, copy.deepcopy(samples), rescale=False)
            ]
        found = model.relations.detect(model._detector_maps(inputs), inputs, samples)
        graphs = model.predict(inputs, copy.deepcopy(samples), rescale=False)
    assert sum(map(len, found)) > 0
    for ours, theirs, graph in zip(found, expected, graphs, strict=True):
        theirs = theirs[theirs.scores.argsort(descending=True, stable=True)]
        assert len(ours) <= model.relation_test_cfg['max_objects']
        kept = len(ours)
        theirs = theirs[(theirs.bboxes[:, 2:] > theirs.bboxes[:, :2]).all(dim=1)][:kept]
        for key in ('bboxes', 'labels', 'scores'):
            assert torch.equal(ours[key], theirs[key]), key
        boxes = {tuple(box) for box in ours.bboxes.tolist()}
        assert {tuple(box) for box in graph.pred_instances.bboxes.tolist()} <= boxes


@pytest.mark.parametrize('name', NAMES)
def test_detections_in_training_see_no_truth_and_change_nothing(batch, name):
    """The queries of a DINO, for example, contain noisy ground truth in training mode."""
    model = build(wrapped(name, protocol='sgdet', detector_loss=True)).train()
    data = model.data_preprocessor(copy.deepcopy(batch), True)
    inputs, samples = data['inputs'], data['data_samples']
    maps = model._detector_maps(inputs)
    state = copy.deepcopy(model.state_dict())
    modes = [module.training for module in model.modules()]
    torch.manual_seed(0)
    before = model.relations.detect(maps, inputs, samples)
    blind = copy.deepcopy(samples)
    for sample in blind:
        del sample.gt_instances
    torch.manual_seed(1)
    after = model.relations.detect(maps, inputs, blind)
    for one, other in zip(before, after, strict=True):
        assert torch.equal(one.bboxes, other.bboxes)
        assert torch.equal(one.scores, other.scores)
        assert not one.bboxes.requires_grad
    assert modes == [module.training for module in model.modules()]
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert all('pred_instances' not in sample for sample in samples)
    assert 'extract_feat' not in vars(model.detector)


# ---- protocols -----------------------------------------------------------------------------


@pytest.mark.parametrize('name', NAMES)
def test_every_protocol_trains_and_predicts(batch, name):
    for protocol in PROTOCOLS:
        model = build(wrapped(name, 'RNNContext', protocol=protocol)).train()
        total, _ = model.parse_losses(losses_of(model, batch))
        total.backward()
        assert total.isfinite()
        assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
        for graph in graphs_of(model, batch):
            count = len(graph.pred_instances)
            assert graph.pred_relations.scores.shape == (count * (count - 1), 10)
            truth = graph.gt_instances
            if protocol != 'sgdet':
                assert torch.equal(graph.pred_instances.bboxes, truth.bboxes)
            if protocol == 'predcls':
                assert torch.equal(graph.pred_instances.labels, truth.labels)


@pytest.mark.parametrize('name', ['RetinaNet', 'DINO', 'CascadeRCNN', 'FasterRCNN'])
def test_sgcls_labels_do_not_depend_on_given_labels(batch, name):
    model = build(wrapped(name, 'RNNContext', protocol='sgcls'))
    other = copy.deepcopy(batch)
    for sample in other['data_samples']:
        sample.gt_instances.labels = (sample.gt_instances.labels + 3) % 10
    for a, b in zip(graphs_of(model, batch), graphs_of(model, other), strict=True):
        assert torch.equal(a.pred_instances.labels, b.pred_instances.labels)
        assert torch.equal(a.pred_relations.scores, b.pred_relations.scores)


def test_given_box_has_label_of_best_detection_on_it():
    found = InstanceData(
        bboxes=torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [50, 50, 60, 60]]),
        labels=torch.tensor([2, 1, 0]),
        scores=torch.tensor([0.8, 0.5, 0.4]),
    )
    # On the first detection; on the first and second; half of the third: IoU 1/3; on nothing.
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [55, 50, 65, 60], [90, 90, 99, 99]])
    probs = given_probs(boxes, found, 4)
    # 0.9 * 0.8 on the label, and the remaining 0.28 evenly on four classes.
    first = [0.07, 0.07, 0.79, 0.07, 0.0]
    expected = torch.tensor([first, first, [0.25] * 4 + [0.0], [0.25] * 4 + [0.0]])
    torch.testing.assert_close(probs, expected)
    assert given_probs(boxes[:0], found, 4).shape == (0, 5)
    torch.testing.assert_close(given_probs(boxes, found[:0], 4), expected[2:3].expand(4, 5))


def test_detection_keeps_label_and_order_of_scores():
    found = InstanceData(labels=torch.tensor([2, 0]), scores=torch.tensor([0.8, 0.01]))
    expected = [[0.02, 0.02, 0.74, 0.02, 0.2], [0.00925, 0.00025, 0.00025, 0.00025, 0.99]]
    torch.testing.assert_close(predicted_probs(found, 4), torch.tensor(expected))
    only = InstanceData(labels=torch.tensor([0]), scores=torch.tensor([0.8]))
    torch.testing.assert_close(predicted_probs(only, 1), torch.tensor([[0.8, 0.2]]))


@pytest.mark.parametrize('name', ['RetinaNet', 'Mask2Former', 'DETR'])
def test_image_without_detections_and_without_truth(name):
    model = build(wrapped(name, 'TransformerContext', protocol='sgdet')).train()
    empty = sample_of(1)
    empty['data_samples'].gt_instances = empty['data_samples'].gt_instances[:0]
    empty['data_samples'].gt_relations = empty['data_samples'].gt_relations[:0]
    batch = dict(
        inputs=[empty['inputs']] * 2, data_samples=[empty['data_samples'], empty['data_samples']]
    )
    model.adapter.detect = lambda *args: (
        [
            InstanceData(
                bboxes=torch.zeros(0, 4),
                labels=torch.zeros(0, dtype=torch.int64),
                scores=torch.zeros(0),
            )
        ]
        * 2
    )
    total, _ = model.parse_losses(losses_of(model, batch))
    total.backward()
    assert total.isfinite()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    graph = graphs_of(model, batch)[0]
    assert len(graph.pred_instances) == 0 and graph.pred_relations.scores.shape == (0, 10)


# ---- what trains ---------------------------------------------------------------------------


@pytest.mark.parametrize('name', NAMES)
def test_frozen_detector_does_not_change(batch, name):
    cfg = wrapped(name, protocol='sgdet', freeze_detector=True, detector_loss=None)
    model = build(cfg).train()
    assert not any(module.training for module in model.detector.modules())
    assert model.relation_head.training
    before = copy.deepcopy(model.detector.state_dict())
    losses = losses_of(model, batch)
    model.parse_losses(losses)[0].backward()
    assert all(p.grad is None for p in model.detector.parameters())
    trained = [p for n, p in model.named_parameters() if not n.startswith('detector.')]
    assert all(p.grad is not None for p in trained)
    after = model.detector.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items())


@pytest.mark.parametrize('name', NAMES)
def test_without_detector_loss_only_features_train(batch, name):
    model = build(wrapped(name, protocol='predcls')).train()
    trained = {n.split('.')[0] for n, p in model.detector.named_parameters() if p.requires_grad}
    assert trained == {'backbone', 'neck'} & {n for n, _ in model.detector.named_children()}
    total, _ = model.parse_losses(losses_of(model, batch))
    total.backward()
    assert (
        model.detector.backbone.get_parameter(
            next(n for n, _ in model.detector.backbone.named_parameters())
        )
        .grad.abs()
        .sum()
    )


# ---- a Faster R-CNN gives the bits of SceneGraphRCNN ----------------------------------------


@pytest.mark.parametrize('trains', ['frozen', 'features', 'jointly'])
@pytest.mark.parametrize('protocol', PROTOCOLS)
def test_wrapped_faster_rcnn_gives_bits_of_scene_graph_rcnn(make_model, batch, protocol, trains):
    options = dict(
        protocol=protocol, freeze_detector=trains == 'frozen', detector_loss=trains == 'jointly'
    )
    rcnn = make_model('RNNContext', **options)
    cfg = wrapped('FasterRCNN', 'RNNContext', **options)
    cfg.scene_head.in_levels = (0, 3)
    model = build(cfg)
    load_state_dict(model, rcnn.state_dict(), strict=True)  # maps the keys
    results = []
    for one in (rcnn, model):
        losses = losses_of(one.train(), batch)
        total, _ = one.parse_losses(losses)
        total.backward()
        grads = {n.removeprefix('detector.'): p.grad for n, p in one.named_parameters()}
        results.append((losses, grads, graphs_of(one, batch), one.state_dict()))
    (losses, grads, graphs, state), (ours, our_grads, our_graphs, our_state) = results
    assert list(losses) == list(ours)
    for key, loss in losses.items():
        assert all(torch.equal(a, b) for a, b in zip(values(loss), values(ours[key]), strict=True))
    assert list(grads) == list(our_grads)
    for key, grad in grads.items():
        assert grad is our_grads[key] is None or torch.equal(grad, our_grads[key]), key
    for a, b in zip(graphs, our_graphs, strict=True):
        for part in ('pred_instances', 'pred_relations'):
            for key, value in a.get(part).items():
                assert torch.equal(value, b.get(part)[key]), key
        assert torch.equal(a.pred_scene.score, b.pred_scene.score)
    assert [key.removeprefix('detector.') for key in our_state] == list(state)


# ---- checkpoints ---------------------------------------------------------------------------


@pytest.mark.parametrize('name', NAMES)
def test_checkpoint_of_plain_detector_loads_as_it_is(name, recwarn):
    plain = build(detector_cfg(name), seed=5)
    model = build(wrapped(name, freeze_detector=True, detector_loss=None), seed=6)
    heads = copy.deepcopy(model.relation_head.state_dict())
    load_state_dict(model, plain.state_dict())
    loaded = model.detector.state_dict()
    assert all(torch.equal(value, loaded[key]) for key, value in plain.state_dict().items())
    kept = model.relation_head.state_dict()
    assert all(torch.equal(value, kept[key]) for key, value in heads.items())


def test_checkpoints_of_both_models_load_into_each_other(make_model):
    rcnn = make_model('RNNContext')
    cfg = wrapped('FasterRCNN', 'RNNContext')
    cfg.scene_head.in_levels = (0, 3)
    model = build(cfg, seed=3)
    state = model.state_dict()
    rcnn.load_state_dict(state)
    assert all(
        torch.equal(state[key], value)
        for key, value in zip(state, rcnn.state_dict().values(), strict=True)
    )
    check_weights(rcnn, state)
    check_weights(model, rcnn.state_dict())


def test_parameters_of_scene_graph_rcnn_are_named_as_before(make_model):
    plain = MODELS.build(faster_rcnn()).state_dict()
    names = list(make_model('RNNContext').state_dict())
    assert names[: len(plain)] == list(plain)
    assert {key.split('.')[0] for key in names[len(plain) :]} == {'relation_head', 'scene_head'}


@pytest.mark.parametrize('frozen', [True, False])
@pytest.mark.parametrize('saved', ['YOLOX', 'FasterRCNN'])
def test_checkpoint_of_other_detector_raises(saved, frozen):
    options = dict(freeze_detector=True, detector_loss=None) if frozen else {}
    model = build(wrapped('RetinaNet', **options))
    state = build(detector_cfg(saved)).state_dict()
    message = r'does not fit the detector of this config, a RetinaNet: backbone.conv1.weight .*'
    message += 'A frozen detector needs all' if frozen else 'more do not fit$'
    with pytest.raises(ValueError, match=message):
        load_state_dict(model, state)


def test_partial_checkpoint_raises_only_if_frozen():
    state = build(detector_cfg('RetinaNet'), seed=5).state_dict()
    backbone = {key: value for key, value in state.items() if key.startswith('backbone.')}
    model = build(wrapped('RetinaNet'))
    load_state_dict(model, backbone)
    key = 'backbone.conv1.weight'
    assert torch.equal(model.detector.state_dict()[key], state[key])
    frozen = build(wrapped('RetinaNet', freeze_detector=True, detector_loss=None))
    with pytest.raises(ValueError, match=r'a RetinaNet: neck\S+ is missing, and \d+ more'):
        load_state_dict(frozen, backbone)
    other = {**state, 'bbox_head.retina_cls.bias': torch.zeros(7)}
    with pytest.raises(ValueError, match=r'retina_cls.bias has the shape \(7,\), not \(60,\)'):
        load_state_dict(frozen, other)


def test_frozen_scene_graph_rcnn_refuses_detector_of_other_classes(make_model):
    model = make_model(freeze_detector=True, detector_loss=None)
    cfg = faster_rcnn()
    cfg['roi_head']['bbox_head']['num_classes'] = 80
    with pytest.raises(ValueError, match=r'a SceneGraphRCNN: roi_head.bbox_head.fc_cls.weight has'):
        load_state_dict(model, MODELS.build(cfg).state_dict())


def test_copy_of_model_is_independent(make_model, batch):
    """As EMAHook needs it: a copy runs its own detector."""
    for model in (make_model(protocol='sgdet'), build(wrapped('RetinaNet', protocol='sgdet'))):
        other = copy.deepcopy(model)
        before = graphs_of(other, batch)
        with torch.no_grad():
            for param in model.parameters():
                param.zero_()
        for a, b in zip(before, graphs_of(other, batch), strict=True):
            assert torch.equal(a.pred_instances.bboxes, b.pred_instances.bboxes)
            assert torch.equal(a.pred_relations.scores, b.pred_relations.scores)


# ---- errors --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(roi_extractor=None), 'a RetinaNet has no RoI extractor: set roi_extractor'),
        (
            dict(roi_extractor=None, graph_neck=dict(type='FPN')),
            'graph_neck needs a roi_extractor',
        ),
        (dict(train_cfg=dict(rcnn=dict())), r"only, got 'rcnn': set detector.train_cfg.rcnn"),
        (dict(test_cfg=dict(nms=dict())), r"only, got 'nms': set detector.test_cfg.nms"),
        (dict(relation_head=dict(num_classes=7)), 'num_classes=7, .* RetinaNet .* has 10'),
        (dict(relation_head=dict(in_channels=7)), 'in_channels=7, .*SingleRoIExtractor .* has 64'),
        (
            dict(freeze_detector=True, detector_loss=True),
            'detector_loss=True needs freeze_detector=False',
        ),
    ],
)
def test_bad_config_raises_with_its_key(change, message):
    cfg = wrapped('RetinaNet')
    cfg.update(change)
    with pytest.raises(ValueError, match=message):
        MODELS.build(cfg)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (
            dict(out_channels=16),
            r'out_channels=16, but the feature maps .* RetinaNet are \[\(64, .*graph_neck',
        ),
        (dict(featmap_strides=[4, 8, 16]), r'featmap_strides=\[4, 8, 16\], but for inputs of'),
        (dict(featmap_strides=[8, 16, 32, 64]), 'featmap_strides has 4 levels, but .* has 3'),
    ],
)
def test_extractor_that_does_not_fit_the_maps_raises(batch, change, message):
    cfg = wrapped('RetinaNet')
    cfg.roi_extractor.update(change)
    with pytest.raises(ValueError, match=message):
        graphs_of(build(cfg), batch)


def test_detector_without_boxes_raises(batch):
    cfg = wrapped('Mask2Former', protocol='sgdet')
    cfg.detector.test_cfg.instance_on = False
    with pytest.raises(ValueError, match=r'Mask2Former.predict gave no .*instance_on=True'):
        graphs_of(build(cfg), batch)
    cfg.protocol = 'predcls'  # needs no predictions
    assert 'pred_relations' in graphs_of(build(cfg), batch)[0]


def test_detector_without_rpn_needs_proposals(batch):
    cfg = wrapped('FasterRCNN', protocol='sgdet')
    cfg.detector.type = 'FastRCNN'
    del cfg.detector['rpn_head'], cfg.detector.train_cfg['rpn']
    model = build(cfg)
    with pytest.raises(
        ValueError, match='FastRCNN has no RPN, and .* no proposals: .*LoadProposals'
    ):
        graphs_of(model, batch)
    proposed = copy.deepcopy(batch)
    for sample in proposed['data_samples']:
        sample.proposals = InstanceData(bboxes=sample.gt_instances.bboxes + 1)
    assert 'pred_relations' in graphs_of(model, proposed)[0]
    model.detector_loss = True
    assert 'loss_cls' in losses_of(model.train(), proposed)


def test_failure_of_the_detector_names_it(batch):
    model = build(wrapped('RetinaNet', protocol='sgdet'))
    del model.detector.bbox_head.test_cfg
    model.detector.bbox_head.test_cfg = None
    with pytest.raises(ValueError, match=r'RetinaNet.predict failed: \w+: .*lack something'):
        graphs_of(model, batch)


def test_double_head_is_not_given_roi_maps(batch):
    """Its box head takes two inputs, so labels come from the detections."""
    cfg = wrapped('FasterRCNN', protocol='sgcls')
    cfg.detector.roi_head.update(type='DoubleHeadRoIHead', reg_roi_scale_factor=1.3)
    cfg.detector.roi_head.bbox_head.update(
        type='DoubleConvFCBBoxHead', num_convs=1, num_fcs=1, conv_out_channels=16
    )
    model = build(cfg)
    assert not model.adapter.classifies_boxes
    assert 'pred_relations' in graphs_of(model, batch)[0]
    rcnn = {**cfg.detector, 'type': 'SceneGraphRCNN', 'relation_head': cfg.relation_head}
    with pytest.raises(ValueError, match='one box head.*DoubleHeadRoIHead.*SceneGraphDetector'):
        MODELS.build(rcnn)


def test_two_stage_detector_with_other_extractor_uses_its_detections(batch):
    cfg = wrapped('FasterRCNN', protocol='sgcls')
    extractor = dict(cfg.detector.roi_head.bbox_roi_extractor, featmap_strides=[4, 8, 16, 32])
    cfg.roi_extractor = extractor
    model = build(cfg)
    assert not model.adapter.classifies_boxes
    # The detector's own RoI head is on no path from the features to the relations.
    assert not any(p.requires_grad for p in model.detector.roi_head.parameters())
    model.parse_losses(losses_of(model.train(), batch))[0].backward()
    assert 'pred_relations' in graphs_of(model, batch)[0]
