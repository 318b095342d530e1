"""A model small enough for tests, and batches of ShapeScenes pictures with relations."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.config import ConfigDict
from mmengine.registry import DefaultScope, init_default_scope
from mmengine.structures import InstanceData, LabelData

import gclip_mm  # noqa: F401  registers everything
from gclip_mm.datasets.shape_scenes.sampling import draw_sample

SIZE = (80, 64)  # width, height
CONTEXTS = {
    'IdentityContext': {},
    'RNNContext': dict(hidden_dim=32, cell='lstm'),
    'CRNNContext': dict(hidden_dim=32, conv_channels=16, num_convs=1),
    'TransformerContext': dict(
        hidden_dim=32, num_heads=2, num_layers=1, num_edge_layers=1, ffn_dim=64, dropout=0.0
    ),
    'IMPContext': dict(hidden_dim=32),
}


@pytest.fixture(autouse=True)
def mmdet_scope():
    """Use MMDetection's default scope and restore the previous scope afterwards."""
    known = list(DefaultScope._instance_dict.items())
    init_default_scope('mmdet')
    yield
    DefaultScope._instance_dict.clear()
    DefaultScope._instance_dict.update(known)


def _rpn_and_rcnn(train: bool) -> dict:
    assigner = dict(type='MaxIoUAssigner', pos_iou_thr=0.5, neg_iou_thr=0.5, min_pos_iou=0.5)
    sampler = dict(type='RandomSampler', num=32, pos_fraction=0.25, neg_pos_ub=-1)
    proposal = dict(nms_pre=100, max_per_img=30, nms=dict(type='nms', iou_threshold=0.7))
    proposal['min_bbox_size'] = 0
    if not train:
        rcnn = dict(score_thr=0.01, nms=dict(type='nms', iou_threshold=0.5), max_per_img=12)
        return dict(rpn=proposal, rcnn=rcnn, relation=dict(max_objects=10))
    return dict(
        rpn=dict(
            assigner=assigner,
            sampler={**sampler, 'add_gt_as_proposals': False},
            allowed_border=-1,
            pos_weight=-1,
            debug=False,
        ),
        rpn_proposal=proposal,
        rcnn=dict(
            assigner=assigner,
            sampler={**sampler, 'add_gt_as_proposals': True},
            pos_weight=-1,
            debug=False,
        ),
    )


def model_cfg(context: str | None = 'IdentityContext', **options) -> ConfigDict:
    """Config of a SceneGraphRCNN with a ResNet-18 at an eighth of its width."""
    coder = dict(
        type='DeltaXYWHBBoxCoder', target_means=[0.0] * 4, target_stds=[0.1, 0.1, 0.2, 0.2]
    )
    head = options.pop('relation_head', {})
    return ConfigDict(
        type='SceneGraphRCNN',
        data_preprocessor=dict(
            type='DetDataPreprocessor', mean=[127.0] * 3, std=[60.0] * 3, pad_size_divisor=16
        ),
        backbone=dict(type='ResNet', depth=18, base_channels=8, norm_eval=False),
        neck=dict(type='FPN', in_channels=[8, 16, 32, 64], out_channels=16, num_outs=4),
        rpn_head=dict(
            type='RPNHead',
            in_channels=16,
            feat_channels=16,
            anchor_generator=dict(
                type='AnchorGenerator', scales=[6], ratios=[1.0], strides=[4, 8, 16, 32]
            ),
            bbox_coder=coder,
            loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=True),
            loss_bbox=dict(type='L1Loss'),
        ),
        roi_head=dict(
            type='StandardRoIHead',
            bbox_roi_extractor=dict(
                type='SingleRoIExtractor',
                roi_layer=dict(type='RoIAlign', output_size=5, sampling_ratio=1),
                out_channels=16,
                featmap_strides=[4, 8, 16, 32],
                finest_scale=28,
            ),
            bbox_head=dict(
                type='Shared2FCBBoxHead',
                in_channels=16,
                fc_out_channels=32,
                roi_feat_size=5,
                num_classes=10,
                bbox_coder=coder,
                loss_cls=dict(type='CrossEntropyLoss'),
                loss_bbox=dict(type='L1Loss'),
            ),
        ),
        relation_head={
            **dict(
                type='RelationHead',
                num_predicates=10,
                context=None if context is None else dict(type=context, **CONTEXTS[context]),
                union=dict(mask_channels=16, mask_scale=2, num_groups=4),
                frequency_bias=dict(type='FrequencyBias'),
                fc_dim=48,
                embed_dim=8,
                geometry_dim=8,
            ),
            **head,
        },
        scene_head=dict(type='SceneHead', num_scenes=6, in_channels=16, in_levels=(0, 3)),
        train_cfg=_rpn_and_rcnn(True),
        test_cfg=_rpn_and_rcnn(False),
        **{'protocol': 'predcls', 'freeze_detector': False, 'detector_loss': False, **options},
    )


def some_counts(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 5, (10, 10, 10)), rng.integers(0, 20, (10, 10))


@pytest.fixture
def make_model():
    """Build a seeded model whose frequency bias has counts."""

    def make(context: str | None = 'IdentityContext', **options):
        torch.manual_seed(0)
        model = MODELS.build(copy.deepcopy(model_cfg(context, **options)))
        if model.relation_head.frequency_bias is not None:
            model.relation_head.frequency_bias.set_counts(*some_counts())
        return model

    return make


def sample_of(index: int, relations: bool = True, size: tuple[int, int] = SIZE) -> dict:
    """A ShapeScenes picture in the format of the pipeline."""
    drawn = draw_sample(0, 'train', index, size)
    boxes = torch.tensor([obj['bbox'] for obj in drawn.objects]).float()
    boxes = torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1)
    triplets = torch.tensor(drawn.relations if relations else [], dtype=torch.int64).reshape(-1, 3)
    sample = DetDataSample(
        metainfo=dict(
            img_id=index,
            img_shape=size[::-1],
            ori_shape=size[::-1],
            scale_factor=(1.0, 1.0),
        )
    )
    sample.gt_instances = InstanceData(
        bboxes=boxes, labels=torch.tensor([obj['category_id'] - 1 for obj in drawn.objects])
    )
    sample.gt_relations = InstanceData(pairs=triplets[:, :2], labels=triplets[:, 2])
    sample.gt_scene = LabelData(label=torch.tensor([drawn.scene]))
    image = np.ascontiguousarray(drawn.image.transpose(2, 0, 1))
    return dict(inputs=torch.from_numpy(image), data_samples=sample)


def keep_objects(data: dict, count: int) -> dict:
    """The same picture with annotations of its first objects only."""
    sample = data['data_samples']
    sample.gt_instances = sample.gt_instances[:count]
    inside = (sample.gt_relations.pairs < count).all(dim=1)
    sample.gt_relations = sample.gt_relations[inside]
    return data


@pytest.fixture
def make_batch():
    """Collate pictures: ``make_batch(range(4))``, or a list of outputs of :func:`sample_of`."""

    def make(items, **options) -> dict:
        items = [sample_of(i, **options) if isinstance(i, int) else i for i in items]
        return dict(
            inputs=[item['inputs'] for item in items],
            data_samples=[item['data_samples'] for item in items],
        )

    return make


@pytest.fixture
def loss_of():
    def loss(model, batch) -> dict:
        batch = model.data_preprocessor(copy.deepcopy(batch), True)
        return model(**batch, mode='loss')

    return loss


@pytest.fixture
def predict():
    def run(model, batch) -> list:
        model.eval()
        with torch.no_grad():
            return model.test_step(copy.deepcopy(batch))

    return run


@pytest.fixture
def pictures():
    """Functions that create single pictures."""
    return dict(sample_of=sample_of, keep_objects=keep_objects)


@pytest.fixture
def contexts():
    return CONTEXTS


@pytest.fixture
def config_of():
    return model_cfg
