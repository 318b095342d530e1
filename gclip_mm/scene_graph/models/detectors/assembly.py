"""Completes and checks the config of a scene-graph model."""

from __future__ import annotations

from typing import Any

from mmdet.models.roi_heads import StandardRoIHead
from torch import nn

from ..protocol import SceneGraphProtocol

_RELATION_DEFAULTS: dict[str, dict[str, Any]] = {
    'train_cfg': dict(
        sampler=dict(type='PairSampler', num=256, pos_fraction=0.25), iou_thr=0.5, add_gt=True
    ),
    'test_cfg': dict(
        max_objects=80, max_pairs=2048, require_overlap=False, nms_iou_thr=0.5, max_relations=None
    ),
}


def relation_cfg(name: str, cfg: dict | None) -> dict[str, Any]:
    """The ``relation`` part of ``train_cfg`` or ``test_cfg``, completed with defaults.

    Raises:
        ValueError: A key is unknown; the message lists the valid ones.
    """
    defaults = _RELATION_DEFAULTS[name]
    given = dict((cfg or {}).get('relation') or {})
    unknown = sorted(set(given) - set(defaults))
    if unknown:
        raise ValueError(
            f'{name}.relation has no key {unknown[0]!r}; valid keys: {", ".join(defaults)}'
        )
    return {**defaults, **given}


def complete_relation_head(
    cfg: dict, roi_head: nn.Module, protocol: SceneGraphProtocol
) -> dict[str, Any]:
    """Complete the config of the relation head with sizes of the RoI head.

    Raises:
        ValueError: The RoI head is not supported, or a size in ``cfg`` contradicts it.
    """
    if not isinstance(roi_head, StandardRoIHead) or isinstance(roi_head.bbox_head, nn.ModuleList):
        raise ValueError(
            'SceneGraphRCNN needs a roi_head with one box head, such as StandardRoIHead; '
            f'got {type(roi_head).__name__}'
        )
    extractor = roi_head.bbox_roi_extractor
    decided = {'num_classes': roi_head.bbox_head.num_classes}
    if not roi_head.with_shared_head:
        decided['in_channels'] = extractor.out_channels
        decided['roi_size'] = extractor.roi_layers[0].output_size[0]
    for key, value in decided.items():
        if cfg.get(key, value) != value:
            raise ValueError(
                f'relation_head.{key}={cfg[key]}, but the roi_head of this config has {value}'
            )
    if roi_head.with_shared_head and not {'in_channels', 'roi_size'} <= set(cfg):
        raise ValueError(
            'with a shared_head, relation_head needs in_channels and roi_size of its output'
        )
    return {**cfg, **decided, 'protocol': protocol}
