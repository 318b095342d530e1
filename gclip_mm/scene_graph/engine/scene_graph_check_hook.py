"""Says at once, and by the key of the config, where model, data and metric do not fit."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mmdet.registry import HOOKS
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import BaseLoop, Runner

from ..evaluation.metric import SceneGraphMetric
from ..models.detectors import SceneGraphRCNN
from ..models.protocol import SceneGraphProtocol


@HOOKS.register_module()
class SceneGraphCheckHook(Hook):
    """Compares a scene-graph model with its data sets and metrics before anything runs.

    Without it a wrong number of classes is an index out of range in the middle of training, and a
    model of one protocol measured by another gives a figure that means nothing.

    Raises:
        ValueError: The model is no SceneGraphRCNN; it has another number of classes, predicates or
            scenes than a data set; it has another protocol than a metric; a detector that has to
            find or name objects is trained without its losses.

    Example:
        >>> custom_hooks = [dict(type='SceneGraphCheckHook'), dict(type='FrequencyBiasHook')]
    """

    # Before FrequencyBiasHook, which trips over the wrong numbers too.
    priority = 'HIGHEST'

    def before_run(self, runner: Runner) -> None:
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        if not isinstance(model, SceneGraphRCNN):
            raise ValueError(
                f'SceneGraphCheckHook: the model is a {type(model).__name__}, no SceneGraphRCNN; '
                'take the hook out of custom_hooks'
            )
        if isinstance(runner._train_loop, BaseLoop):
            check_detector_learns(model)
        for loop in (runner._train_loop, runner._val_loop, runner._test_loop):
            # What is not going to run is still a config, or None.
            if isinstance(loop, BaseLoop):
                check_sizes(model, loop.dataloader.dataset.metainfo)
                for metric in getattr(getattr(loop, 'evaluator', None), 'metrics', ()):
                    check_protocol(model, metric)


def check_detector_learns(model: SceneGraphRCNN) -> None:
    """Raise where a detector is needed whose heads stay as they are beside a changing backbone."""
    finds = model.protocol is not SceneGraphProtocol.PREDCLS
    if finds and not model.freeze_detector and not model.detector_loss:
        raise ValueError(
            f'model.protocol={model.protocol.value!r} needs a detector, and with '
            'model.detector_loss=False and freeze_detector=False its RPN and box head learn '
            'nothing: set detector_loss=True, or freeze_detector=True and load a trained one'
        )


def check_sizes(model: SceneGraphRCNN, meta: dict[str, Any]) -> None:
    """Raise where the model has another number of outputs than the data set has names."""
    for kind, key, size in _sizes(model):
        names = list(meta.get(kind) or ())
        if kind == 'scenes' and not names:
            raise ValueError('the data set names no scenes: set model.scene_head=None')
        if len(names) != size:
            raise ValueError(f'{key}={size}, but the data set names {len(names)} {kind}: {names}')


def _sizes(model: SceneGraphRCNN) -> Iterator[tuple[str, str, int]]:
    box_head = model.roi_head.bbox_head
    yield 'classes', 'model.roi_head.bbox_head.num_classes', box_head.num_classes
    relations = model.relation_head
    yield 'classes', 'model.relation_head.num_classes', relations.num_classes
    yield 'predicates', 'model.relation_head.num_predicates', relations.num_predicates
    if model.scene_head is not None:
        yield 'scenes', 'model.scene_head.num_scenes', model.scene_head.num_scenes


def check_protocol(model: SceneGraphRCNN, metric: Any) -> None:
    """Raise where a metric measures another protocol than the model's."""
    if isinstance(metric, SceneGraphMetric) and metric.protocol != model.protocol.value:
        raise ValueError(
            f'model.protocol={model.protocol.value!r}, but val_evaluator or test_evaluator has '
            f'protocol={metric.protocol!r}: give all three the same'
        )
