"""Completes and checks the config of a scene-graph model."""

from __future__ import annotations

from typing import Any

from mmdet.registry import MODELS
from torch import nn

from ..heads.egtr_head import EGTRHead
from ..protocol import SceneGraphProtocol
from .adapters import DetectorAdapter
from .adapters.decoder_queries import decoder_of

_RELATION_DEFAULTS: dict[str, dict[str, Any]] = {
    'train_cfg': dict(
        sampler=dict(type='PairSampler', num=256, pos_fraction=0.25), iou_thr=0.5, add_gt=True
    ),
    'test_cfg': dict(
        max_objects=80, max_pairs=2048, require_overlap=False, nms_iou_thr=0.5, max_relations=None
    ),
}


#: The same for a head that reads the queries of the detector.
_QUERY_DEFAULTS: dict[str, dict[str, Any]] = {
    'train_cfg': {},
    'test_cfg': dict(
        max_objects=None,
        max_pairs=None,
        require_overlap=False,
        nms_iou_thr=None,
        max_relations=2048,
    ),
}


def relation_cfg(name: str, cfg: dict | None, queries: bool = False) -> dict[str, Any]:
    """The ``relation`` part of ``train_cfg`` or ``test_cfg``, completed with defaults.

    Args:
        name: ``'train_cfg'`` or ``'test_cfg'``.
        cfg: Its value.
        queries: Whether the relation head reads the queries of the detector.

    Raises:
        ValueError: A key is unknown; the message lists the valid ones.
    """
    defaults = (_QUERY_DEFAULTS if queries else _RELATION_DEFAULTS)[name]
    given = dict((cfg or {}).get('relation') or {})
    unknown = sorted(set(given) - set(defaults))
    if unknown:
        raise ValueError(
            f'{name}.relation has no key {unknown[0]!r}'
            + (' for a head that reads queries' if queries else '')
            + f'; valid keys: {", ".join(defaults) or "none"}'
        )
    return {**defaults, **given}


def reads_queries(relation_head: dict) -> bool:
    """Whether a relation head reads the queries of the detector, and not RoI maps."""
    kind = relation_head.get('type')
    built = MODELS.get(kind) if isinstance(kind, str) else kind
    return isinstance(built, type) and issubclass(built, EGTRHead)


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


def complete_query_head(
    cfg: dict, adapter: DetectorAdapter, given: list[str], protocol: SceneGraphProtocol
) -> dict[str, Any]:
    """Complete the config of a relation head that reads queries with sizes of the decoder.

    Args:
        cfg: Config of the relation head.
        adapter: The adapter of the detector.
        given: Parts for RoI maps that the config of the model has.
        protocol: The protocol of the model.

    Raises:
        ValueError: The detector has no decoder that can be read, a size in ``cfg`` contradicts it,
            or the config has a part that would not be used.
    """
    kind = cfg['type'] if isinstance(cfg['type'], str) else cfg['type'].__name__
    decoder = decoder_of(adapter.detector, kind)
    if given:
        raise ValueError(f'{kind} reads no RoI maps: remove {given[0]}')
    decided = dict(embed_dims=decoder.embed_dims, num_layers=len(decoder.layers))
    if adapter.class_count is not None:
        decided['num_classes'] = adapter.class_count[1]
    for key, value in decided.items():
        if cfg.get(key, value) != value:
            raise ValueError(
                f'relation_head.{key}={cfg[key]}, but the detector of type {adapter.name} of this '
                f'config has {value}'
            )
    return {**cfg, **decided, 'protocol': protocol}
