"""SceneGraphRCNN: no ground-truth leaks, batch independence, backbones, losses, outputs."""

import copy

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.structures import InstanceData

from gclip_mm.scene_graph.models import SceneGraphProtocol

CONTEXT_NAMES = [
    'IdentityContext',
    'RNNContext',
    'CRNNContext',
    'TransformerContext',
    'IMPContext',
]
PROTOCOLS = ['predcls', 'sgcls', 'sgdet']


def same_graph(a, b, **tolerance):
    close = dict(rtol=1e-4, atol=1e-5, **tolerance)
    assert torch.equal(a.pred_instances.labels, b.pred_instances.labels)
    torch.testing.assert_close(a.pred_instances.bboxes, b.pred_instances.bboxes, **close)
    torch.testing.assert_close(a.pred_instances.scores, b.pred_instances.scores, **close)
    assert torch.equal(a.pred_relations.pairs, b.pred_relations.pairs)
    torch.testing.assert_close(a.pred_relations.scores, b.pred_relations.scores, **close)
    torch.testing.assert_close(a.pred_scene.score, b.pred_scene.score, **close)


@pytest.mark.parametrize('protocol', PROTOCOLS)
@pytest.mark.parametrize('context', [None, *CONTEXT_NAMES])
def test_every_context_trains_and_predicts_under_every_protocol(
    make_model, make_batch, loss_of, predict, protocol, context
):
    model = make_model(context, protocol=protocol, detector_loss=protocol == 'sgdet').train()
    losses = loss_of(model, make_batch(range(3)))
    expected = {'loss_predicate', 'loss_scene'} | (
        set() if protocol == 'predcls' else {'loss_object'}
    )
    assert expected <= set(losses)
    assert not any('/' in key for key in losses)
    total, _ = model.parse_losses(losses)
    assert total.isfinite()
    total.backward()
    graph = predict(model, make_batch([0]))[0]
    count = len(graph.pred_instances)
    assert graph.pred_relations.scores.shape == (count * (count - 1), 10)
    assert (graph.pred_relations.scores.sum(1) <= 1 + 1e-5).all()  # the remainder is "no relation"
    assert graph.pred_scene.score.shape == (6,)
    assert graph.pred_scene.score.sum().item() == pytest.approx(1)
    if protocol == 'predcls':
        assert torch.equal(graph.pred_instances.labels, graph.gt_instances.labels)
        assert (graph.pred_instances.scores == 1).all()
    if protocol != 'sgdet':
        assert torch.equal(graph.pred_instances.bboxes, graph.gt_instances.bboxes)


@pytest.mark.parametrize('context', CONTEXT_NAMES)
@pytest.mark.parametrize('protocol', ['predcls', 'sgcls'])
def test_predictions_do_not_depend_on_ground_truth_relations(
    make_model, make_batch, predict, pictures, protocol, context
):
    model = make_model(context, protocol=protocol)
    truth = [pictures['sample_of'](i) for i in range(3)]
    before = predict(model, make_batch(truth))
    for change in ('shuffled', 'gone'):
        changed = copy.deepcopy(truth)
        for item in changed:
            sample = item['data_samples']
            if change == 'gone':
                del sample.gt_relations
                del sample.gt_scene
                continue
            relations = sample.gt_relations
            order = torch.randperm(len(relations))
            sample.gt_relations = InstanceData(
                pairs=relations.pairs[order].flip(1), labels=(relations.labels[order] + 3) % 10
            )
        for a, b in zip(before, predict(model, make_batch(changed)), strict=True):
            same_graph(a, b)


def test_sgcls_ignores_labels_and_sgdet_ignores_ground_truth(
    make_model, make_batch, predict, pictures
):
    for protocol in ('sgcls', 'sgdet'):
        model = make_model('RNNContext', protocol=protocol)
        truth = [pictures['sample_of'](i) for i in range(2)]
        before = predict(model, make_batch(truth))
        for item in truth:
            item['data_samples'].gt_instances.labels = (
                item['data_samples'].gt_instances.labels + 4
            ) % 10
            if protocol == 'sgdet':
                item['data_samples'].gt_instances.bboxes += 5
        for a, b in zip(before, predict(model, make_batch(truth)), strict=True):
            same_graph(a, b)


@pytest.mark.parametrize('protocol', PROTOCOLS)
@pytest.mark.parametrize('context', CONTEXT_NAMES)
def test_batch_equals_single_images(make_model, make_batch, predict, pictures, protocol, context):
    model = make_model(context, protocol=protocol)
    items = [pictures['sample_of'](i) for i in range(4)]
    pictures['keep_objects'](items[1], 1)
    pictures['keep_objects'](items[2], 0)
    together = predict(model, make_batch(items))
    for item, graph in zip(items, together, strict=True):
        same_graph(graph, predict(model, make_batch([item]))[0])


def test_batch_padding_does_not_change_scene(make_model):
    head = make_model().scene_head
    feats = [torch.rand(1, 16, 8, 8), None, None, torch.rand(1, 16, 4, 4)]
    padded = [None if f is None else torch.nn.functional.pad(f, (0, f.shape[3])) for f in feats]
    ctx = torch.rand(2, head.obj_ctx_dim)
    torch.testing.assert_close(
        head(feats, [(1.0, 1.0)], ctx, [2]), head(padded, [(1.0, 0.5)], ctx, [2])
    )


@pytest.mark.parametrize('protocol', PROTOCOLS)
@pytest.mark.parametrize('objects', [0, 1])
@pytest.mark.parametrize('context', CONTEXT_NAMES)
def test_batch_without_pairs_gives_finite_losses_and_gradients(
    make_model, make_batch, loss_of, predict, pictures, protocol, objects, context
):
    """Without a pair in the batch, losses are finite and every parameter has a gradient."""
    model = make_model(context, protocol=protocol).train()
    items = [pictures['keep_objects'](pictures['sample_of'](i), objects) for i in range(2)]
    if protocol == 'sgdet':
        model.roi_head.test_cfg.score_thr = model.test_cfg.rcnn.score_thr = 1.1  # no detections
    total, _ = model.parse_losses(loss_of(model, make_batch(items)))
    assert total.isfinite()
    total.backward()
    lost = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert lost == []
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    graph = predict(model, make_batch([items[0]]))[0]
    assert len(graph.pred_instances) == (0 if protocol == 'sgdet' else objects)
    assert graph.pred_relations.pairs.shape == (0, 2)
    assert graph.pred_relations.scores.shape == (0, 10)


def test_unrelated_images_train_no_relation_class(make_model, make_batch, loss_of):
    model = make_model('RNNContext').train()
    losses = loss_of(model, make_batch([0, 1], relations=False))
    assert losses['loss_predicate'] > 0
    assert 'acc_predicate' not in losses


def test_frozen_detector_stays_in_eval_mode_without_gradient(make_model, make_batch, loss_of):
    model = make_model('RNNContext', freeze_detector=True, detector_loss=None).train()
    parts = [model.backbone, model.neck, model.rpn_head, model.roi_head]
    assert not any(m.training for part in parts for m in part.modules())
    assert model.relation_head.training and model.scene_head.training
    before = {k: v.clone() for part in parts for k, v in part.state_dict().items()}
    total, _ = model.parse_losses(loss_of(model, make_batch(range(2))))
    total.backward()
    assert all(p.grad is None for part in parts for p in part.parameters())
    assert all(p.grad is not None for p in model.relation_head.parameters())
    after = {k: v for part in parts for k, v in part.state_dict().items()}
    assert all(torch.equal(v, after[k]) for k, v in before.items())  # including batch statistics


def test_detector_loss_trains_detector(make_model, make_batch, loss_of):
    model = make_model('RNNContext', protocol='sgdet', detector_loss=None).train()
    assert model.detector_loss and model.backbone.training
    losses = loss_of(model, make_batch(range(2)))
    assert {'loss_rpn_cls', 'loss_rpn_bbox', 'loss_cls', 'loss_bbox'} <= set(losses)
    model.parse_losses(losses)[0].backward()
    assert model.rpn_head.rpn_cls.weight.grad.abs().sum() > 0
    assert model.roi_head.bbox_head.fc_cls.weight.grad.abs().sum() > 0


def test_without_detector_loss_rpn_and_box_head_do_not_change(make_model):
    model = make_model('RNNContext')
    for module in (model.rpn_head, model.roi_head.bbox_head):
        assert not any(p.requires_grad for p in module.parameters())
    assert all(p.requires_grad for p in model.neck.parameters())


def test_detector_losses_equal_faster_rcnn(make_model, make_batch, config_of):
    cfg = config_of('RNNContext', protocol='sgdet', detector_loss=True)
    plain = copy.deepcopy(cfg)
    for key in ('relation_head', 'scene_head', 'protocol', 'freeze_detector', 'detector_loss'):
        plain.pop(key)
    plain['type'] = 'FasterRCNN'
    torch.manual_seed(0)
    faster = MODELS.build(copy.deepcopy(plain)).train()
    model = make_model('RNNContext', protocol='sgdet', detector_loss=True).train()
    missing, unexpected = model.load_state_dict(faster.state_dict(), strict=False)
    assert unexpected == []  # every detector weight is loaded
    assert all(key.startswith(('relation_head', 'scene_head')) for key in missing)
    losses = []
    for one in (faster, model):
        torch.manual_seed(1)  # both models sample proposals at random
        batch = one.data_preprocessor(make_batch(range(2)), True)
        losses.append(one(**batch, mode='loss'))
    ours = {k: losses[1][k] for k in losses[0] if k in losses[1]}
    assert set(losses[0]) == set(ours)
    for key, value in losses[0].items():
        for a, b in zip(_as_list(value), _as_list(ours[key]), strict=True):
            torch.testing.assert_close(a, b)


def _as_list(value):
    return value if isinstance(value, list) else [value]


@pytest.mark.parametrize('scale', [(2.0, 2.0), (0.5, 0.25)])
def test_predict_rescales_boxes_to_original_image(make_model, make_batch, predict, pictures, scale):
    item = pictures['sample_of'](0)
    item['data_samples'].set_metainfo(dict(scale_factor=scale))
    graph = predict(make_model(), make_batch([item]))[0]
    expected = graph.gt_instances.bboxes / torch.tensor([*scale, *scale])
    torch.testing.assert_close(graph.pred_instances.bboxes, expected)


def test_max_relations_keeps_best_triplets(make_model, make_batch, predict):
    model = make_model('IdentityContext', protocol='sgcls')
    every = predict(model, make_batch([0]))[0]
    model.relation_test_cfg['max_relations'] = 5
    best = predict(model, make_batch([0]))[0].pred_relations
    scores = every.pred_instances.scores[every.pred_relations.pairs].prod(1)
    rank = scores * every.pred_relations.scores.amax(1)
    expected = rank.topk(5).indices.sort().values
    assert torch.equal(best.pairs, every.pred_relations.pairs[expected])


@pytest.mark.parametrize(
    'backbone, neck',
    [
        (
            dict(type='ResNet', depth=18, base_channels=8, norm_eval=False),
            dict(type='PAFPN', in_channels=[8, 16, 32, 64], out_channels=16, num_outs=4),
        ),
        (
            dict(type='MobileNetV2', widen_factor=0.25, out_indices=(1, 2, 4, 7)),
            dict(type='FPN', in_channels=[8, 8, 24, 1280], out_channels=16, num_outs=4),
        ),
        (
            dict(
                type='SwinTransformer',
                embed_dims=8,
                depths=(1, 1, 1, 1),
                num_heads=(1, 1, 1, 1),
                window_size=4,
            ),
            dict(type='FPN', in_channels=[8, 16, 32, 64], out_channels=16, num_outs=4),
        ),
    ],
)
def test_other_backbones_and_necks_work(
    make_model, make_batch, loss_of, predict, config_of, backbone, neck
):
    cfg = config_of('TransformerContext', protocol='sgdet', detector_loss=True)
    cfg['backbone'], cfg['neck'] = backbone, neck
    model = MODELS.build(cfg)
    model.relation_head.frequency_bias.ready.fill_(True)
    model.train()
    total, _ = model.parse_losses(loss_of(model, make_batch(range(2))))
    total.backward()
    assert total.isfinite()
    assert 'pred_relations' in predict(model, make_batch([0]))[0]


def test_shared_head_without_neck_works(make_batch, loss_of, predict, config_of):
    """C4 design: one level; the last backbone stage runs on each RoI."""
    cfg = config_of('RNNContext', relation_head=dict(in_channels=64, roi_size=3))
    del cfg['neck']
    cfg['scene_head'].update(in_channels=32, in_levels=(0,))
    cfg['backbone'].update(num_stages=3, out_indices=(2,), strides=(1, 2, 2), dilations=(1, 1, 1))
    cfg['rpn_head'].update(in_channels=32)
    cfg['rpn_head']['anchor_generator'].update(strides=[16])
    roi_head = cfg['roi_head']
    roi_head['shared_head'] = dict(type='SmallSharedHead')
    roi_head['bbox_roi_extractor'].update(out_channels=32, featmap_strides=[16])
    roi_head['bbox_head'].update(in_channels=64, roi_feat_size=3)
    model = MODELS.build(copy.deepcopy(cfg)).train()
    model.relation_head.frequency_bias.ready.fill_(True)
    model.parse_losses(loss_of(model, make_batch(range(2))))[0].backward()
    assert model.roi_head.shared_head.conv.weight.grad.abs().sum() > 0
    assert 'pred_relations' in predict(model, make_batch([0]))[0]
    del cfg['relation_head']['in_channels']
    with pytest.raises(ValueError, match='in_channels and roi_size'):
        MODELS.build(cfg)


@MODELS.register_module(force=True)
class SmallSharedHead(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(32, 64, 3, stride=2, padding=1)

    def forward(self, x):
        return self.conv(x)


def test_bfloat16_autocast_trains_and_predicts(make_model, make_batch, loss_of, contexts):
    for context in contexts:
        model = make_model(context, protocol='sgcls').train()
        with torch.autocast('cpu', dtype=torch.bfloat16):
            total, _ = model.parse_losses(loss_of(model, make_batch(range(2))))
        total.backward()
        assert total.isfinite()


def test_protocol_parsing_ignores_case():
    assert SceneGraphProtocol.parse('SGDet') is SceneGraphProtocol.SGDET
    assert SceneGraphProtocol.parse(SceneGraphProtocol.SGCLS) is SceneGraphProtocol.SGCLS
    for wrong in ('phrdet', None, 3):
        with pytest.raises(ValueError, match="'predcls', 'sgcls', 'sgdet'"):
            SceneGraphProtocol.parse(wrong)


@pytest.mark.parametrize(
    'change, message',
    [
        (dict(protocol='phrdet'), "protocol must be one of .*'sgdet', got 'phrdet'"),
        (
            dict(freeze_detector=True, detector_loss=True),
            'detector_loss=True needs freeze_detector=False',
        ),
        (dict(relation_head=dict(num_classes=7)), 'relation_head.num_classes=7.*10'),
        (dict(relation_head=dict(in_channels=7)), 'relation_head.in_channels=7.*16'),
        (dict(relation_head=dict(fusion='max')), "fusion must be one of .*'max'"),
        (dict(relation_head=dict(context=None, frequency_bias=None)), 'a frequency_bias is needed'),
        (dict(relation_head=dict(union=dict(num_groups=5))), 'num_groups=5 must divide'),
    ],
)
def test_bad_setting_raises_with_its_key(make_model, change, message):
    with pytest.raises(ValueError, match=message):
        make_model('IdentityContext', **change)


@pytest.mark.parametrize('name', ['train_cfg', 'test_cfg'])
def test_unknown_relation_key_raises_with_valid_keys(config_of, name):
    cfg = config_of()
    cfg[name]['relation'] = dict(max_object=3)
    with pytest.raises(ValueError, match=f"{name}.relation has no key 'max_object'.*valid"):
        MODELS.build(cfg)


def test_cascade_roi_head_raises(config_of):
    cfg = config_of()
    head = cfg['roi_head']['bbox_head']
    cfg['roi_head'].update(
        type='CascadeRoIHead', num_stages=2, stage_loss_weights=[1, 1], bbox_head=[head, head]
    )
    cfg['train_cfg']['rcnn'] = [cfg['train_cfg']['rcnn']] * 2
    with pytest.raises(ValueError, match='one box head.*CascadeRoIHead'):
        MODELS.build(cfg)


def test_missing_ground_truth_raises_with_field(make_model, make_batch, loss_of, predict, pictures):
    item = pictures['sample_of'](0)
    del item['data_samples'].gt_relations
    with pytest.raises(ValueError, match='no gt_relations to train on'):
        loss_of(make_model().train(), make_batch([item]))
    del item['data_samples'].gt_instances
    for protocol in ('predcls', 'sgcls'):
        with pytest.raises(ValueError, match=f"protocol='{protocol}' needs gt_instances.bboxes"):
            predict(make_model(protocol=protocol), make_batch([item]))
    assert 'pred_relations' in predict(make_model(protocol='sgdet'), make_batch([item]))[0]
