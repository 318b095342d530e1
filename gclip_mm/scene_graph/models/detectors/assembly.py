"""Completes and checks the config of a scene-graph model."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..protocol import SceneGraphProtocol
from .adapters import DetectorAdapter

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


def check_own_cfg(name: str, cfg: dict | None) -> None:
    """Check that ``train_cfg`` or ``test_cfg`` of a SceneGraphDetector has ``relation`` only.

    Raises:
        ValueError: It has a part of the detector, which would be ignored.
    """
    unknown = sorted(set(cfg or {}) - {'relation'})
    if unknown:
        raise ValueError(
            f'{name} of a SceneGraphDetector has the part relation only, got {unknown[0]!r}: set '
            f'detector.{name}.{unknown[0]}'
        )


def roi_extractor_of(adapter: DetectorAdapter, given: nn.Module | None) -> Any:
    """The RoI extractor of the scene graph: the one of its config, or that of the detector.

    Raises:
        ValueError: There is none.
    """
    extractor = adapter.roi_extractor if given is None else given
    if extractor is None:
        raise ValueError(
            f'a {adapter.name} has no RoI extractor: set roi_extractor, for example '
            "dict(type='SingleRoIExtractor', roi_layer=dict(type='RoIAlign', output_size=7, "
            'sampling_ratio=0), out_channels=256, featmap_strides=[8, 16, 32]), with channels and '
            'strides of the feature maps'
        )
    return extractor


def complete_relation_head(
    cfg: dict, adapter: DetectorAdapter, extractor: Any, protocol: SceneGraphProtocol
) -> dict[str, Any]:
    """Complete the config of the relation head with sizes of detector and RoI extractor.

    Args:
        cfg: Config of the relation head.
        adapter: The adapter of the detector.
        extractor: The RoI extractor of the scene graph.
        protocol: The protocol of the model.

    Raises:
        ValueError: A size in ``cfg`` contradicts the detector, or is missing.
    """
    decided: dict[str, tuple[int, str]] = {}
    if adapter.class_count is not None:
        decided['num_classes'] = (adapter.class_count[1], f'detector of type {adapter.name}')
    # A shared head changes the maps of the detector's own extractor.
    changed = extractor is adapter.roi_extractor and adapter.shared_head is not None
    layers = getattr(extractor, 'roi_layers', None)
    if not changed and layers is not None:
        where = type(extractor).__name__
        decided['in_channels'] = (extractor.out_channels, where)
        decided['roi_size'] = (layers[0].output_size[0], where)
    for key, (value, where) in decided.items():
        if cfg.get(key, value) != value:
            raise ValueError(
                f'relation_head.{key}={cfg[key]}, but the {where} of this config has {value}'
            )
    needed = {'num_classes', 'in_channels', 'roi_size'} - set(decided)
    missing = sorted(needed - set(cfg))
    if changed and missing:
        raise ValueError(
            'with a shared_head, relation_head needs in_channels and roi_size of its output'
        )
    if missing:
        raise ValueError(
            f'relation_head.{missing[0]} is needed: it cannot be read from a {adapter.name} with '
            f'{type(extractor).__name__}'
        )
    return {**cfg, **{key: value for key, (value, _) in decided.items()}, 'protocol': protocol}
