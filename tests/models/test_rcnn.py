"""R-CNN: config, losses, predictions, errors."""

from __future__ import annotations

import copy

import pytest
import torch
from mmdet.evaluation.functional import bbox_overlaps
from mmdet.registry import MODELS
from mmdet.utils import register_all_modules
from mmengine.optim import build_optim_wrapper
from mmengine.structures import InstanceData
from torch.nn import functional as F

from tests.configs.tiny import CONFIGS, batch, load_tiny

NETS = ['r50', 'vgg16']


@pytest.fixture(autouse=True, scope='module')
def _registered():
    register_all_modules()


def build(net='r50', **head):
    cfg = load_tiny(CONFIGS / 'rcnn' / f'rcnn_{net}_norm_1x_coco.py')
    cfg.model.roi_head.update(head)
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    model.init_weights()
    return model, cfg


def prepared(model, training):
    return model.data_preprocessor(batch(96, proposals=True), training)


@pytest.mark.parametrize('net', NETS)
def test_loss_gives_gradient_to_every_weight(net):
    model, _ = build(net)
    losses = model(**prepared(model, True), mode='loss')
    assert set(losses) == {'loss_cls', 'loss_bbox', 'acc'}
    model.parse_losses(losses)[0].backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize('net', NETS)
def test_state_dict_has_one_name_per_weight(net):
    model, _ = build(net)
    names = [name for name, _ in model.named_parameters()]
    assert all(name.startswith(('backbone.', 'roi_head.bbox_head.')) for name in names)
    assert set(model.state_dict()) >= set(names)


def test_initial_class_loss_equals_uniform_guess():
    """Initial classifier weights are almost 0, so the loss is log(number of classes + 1)."""
    model, _ = build()
    losses = model(**prepared(model, True), mode='loss')
    assert losses['loss_cls'].item() == pytest.approx(torch.tensor(11.0).log().item(), abs=0.05)


def test_losses_equal_cross_entropy_and_squared_error():
    model, _ = build()
    head = model.roi_head.bbox_head
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(6, 11, generator=generator)
    deltas = torch.randn(6, 40, generator=generator)
    labels = torch.tensor([3, 0, 9, 10, 10, 10])  # 10: background
    targets = torch.randn(6, 4, generator=generator)
    weights = (labels < 10).float()[:, None].expand(6, 4)
    losses = head.loss(scores, deltas, torch.zeros(6, 5), labels, torch.ones(6), targets, weights)
    assert losses['loss_cls'].item() == pytest.approx(F.cross_entropy(scores, labels).item())
    squares = [
        ((deltas[i, 4 * y : 4 * y + 4] - targets[i]) ** 2).sum()
        for i, y in enumerate(labels[:3].tolist())
    ]
    assert losses['loss_bbox'].item() == pytest.approx(sum(squares).item() / 6)


@pytest.mark.parametrize('net', NETS)
def test_regions_per_pass_does_not_change_predictions(net):
    model, _ = build(net)
    model.eval()
    data = prepared(model, False)
    whole = model(**copy.deepcopy(data), mode='tensor')[0]
    model.roi_head.regions_per_pass = 7
    parts = model(**copy.deepcopy(data), mode='tensor')[0]
    for a, b in zip(whole, parts, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_overfitted_model_detects_training_objects():
    """The model finds the training objects from shifted proposals."""
    model, cfg = build()
    model.roi_head.bbox_sampler.num = 32
    cfg.optim_wrapper.optimizer.lr = 0.05
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    data = batch(96, proposals=True)
    for _ in range(80):
        model.train_step(copy.deepcopy(data), wrapper)
    model.eval()
    with torch.no_grad():
        results = model.test_step(batch(96, proposals=True))
    found = []
    for result, truth in zip(results, data['data_samples'], strict=True):
        pred, gt = result.pred_instances, truth.gt_instances
        keep = pred.scores > 0.3
        overlaps = bbox_overlaps(gt.bboxes.numpy(), pred.bboxes[keep].numpy())
        same = gt.labels[:, None] == pred.labels[keep][None]
        found += [
            bool(((row > 0.5) & ok.numpy()).any()) for row, ok in zip(overlaps, same, strict=True)
        ]
    assert sum(found) >= 0.8 * len(found), found


def test_predict_rescales_boxes_to_original_image():
    model, _ = build()
    model.eval()
    data = batch(96, proposals=True)
    small = model.test_step(copy.deepcopy(data))[0].pred_instances.bboxes
    for sample in data['data_samples']:
        sample.set_metainfo(dict(scale_factor=(0.5, 0.25)))
    large = model.test_step(data)[0].pred_instances.bboxes
    torch.testing.assert_close(large, small / torch.tensor([0.5, 0.25, 0.5, 0.25]))


def test_image_without_proposals_or_objects_works():
    model, _ = build()
    data = batch(96, proposals=True)
    for sample in data['data_samples']:
        sample.proposals = InstanceData(bboxes=torch.zeros(0, 4), scores=torch.zeros(0))
        sample.gt_instances = sample.gt_instances[:0]
    losses = model(**model.data_preprocessor(copy.deepcopy(data), True), mode='loss')
    model.parse_losses(losses)[0].backward()
    assert all(torch.isfinite(b).all() for b in model.buffers())
    model.eval()
    assert len(model.test_step(data)[0].pred_instances) == 0


def test_missing_proposals_raise_with_tool_name():
    model, _ = build()
    data = model.data_preprocessor(batch(96), True)
    for mode in ('loss', 'predict', 'tensor'):
        with pytest.raises(ValueError, match='make_proposals.py'):
            model(**data, mode=mode)


def test_deepcopy_uses_its_own_backbone():
    """EMAHook deep-copies the model."""
    model, _ = build()
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for p in twin.backbone.parameters():
            p.zero_()
    crops = torch.randn(2, 3, 32, 32)
    assert not torch.equal(
        model.roi_head.region_network(crops), twin.roi_head.region_network(crops)
    )


def test_other_roi_head_type_raises():
    cfg = load_tiny(CONFIGS / 'rcnn' / 'rcnn_r50_norm_1x_coco.py').model
    cfg.roi_head.type = 'StandardRoIHead'
    with pytest.raises(TypeError, match='RegionRoIHead'):
        MODELS.build(cfg)


@pytest.mark.parametrize(
    ('options', 'word'),
    [
        (dict(regions_per_pass=0), 'regions_per_pass'),
        (dict(shared_head=dict(type='ResLayer', depth=18)), 'shared_head'),
    ],
)
def test_unsupported_head_option_raises_with_its_name(options, word):
    with pytest.raises(ValueError, match=word):
        build(**options)


def test_bfloat16_autocast_trains_and_predicts():
    model, cfg = build()
    wrapper = build_optim_wrapper(
        model, dict(cfg.optim_wrapper, type='GClipAmpOptimWrapper', dtype='bfloat16')
    )
    data = batch(96, proposals=True)
    losses = [model.train_step(copy.deepcopy(data), wrapper)['loss'].item() for _ in range(10)]
    assert losses[-1] < losses[0]
