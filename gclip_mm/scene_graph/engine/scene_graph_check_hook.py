"""Hook that checks that model, data sets and metrics are consistent before a run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from mmdet.registry import HOOKS
from mmengine.hooks import Hook
from mmengine.runner import BaseLoop, Runner

from ...engine.hooks.keys import reject_unknown_keys
from ..evaluation.metric import SceneGraphMetric
from ..models.detectors import SceneGraphDetector
from ..models.protocol import SceneGraphProtocol
from ..models.weights import check_weights
from .run_checks import check_detector_loaded, check_finite, check_flips, check_max_objects
from .unwrapped_model import unwrapped_model

#: Number of pictures of each data set whose files are checked.
_CHECKED_PICTURES = 100


@HOOKS.register_module()
@reject_unknown_keys
class SceneGraphCheckHook(Hook):
    """Checks a scene-graph model against its data sets and metrics before the run starts.

    Without this hook, a wrong number of classes raises an index error in the middle of training.
    A protocol or an order of names that differs between model and metric gives meaningless
    metrics. Error messages name the config key to change.

    Raises:
        ValueError: The model is not a SceneGraphDetector; its number of classes, predicates or
            scenes differs from a data set; a data set has other names than the training set, or
            than the training set of the tested checkpoint; that checkpoint belongs to another
            model; the training set has no relation, or no scene although the model has a scene
            head; a metric has another protocol; a detector that has to find or classify objects is
            trained without its losses; a frozen one has random weights; a flip of the pipeline
            would invalidate predicates; or a model to evaluate has weights that are not finite.
        FileNotFoundError: Pictures of a data set do not exist.

    Example:
        >>> custom_hooks = [dict(type='SceneGraphCheckHook'), dict(type='FrequencyBiasHook')]
    """

    # Has to run before FrequencyBiasHook, whose errors on wrong sizes are less specific.
    priority = 'HIGHEST'

    def __init__(self) -> None:
        self._loaded = False

    def before_run(self, runner: Runner) -> None:
        """Check model, data sets and metrics."""
        model = unwrapped_model(runner)
        if not isinstance(model, SceneGraphDetector):
            raise ValueError(
                f'SceneGraphCheckHook: the model is a {type(model).__name__}, not a '
                'SceneGraphDetector; remove the hook from custom_hooks'
            )
        loops = _loops(runner)
        for where, loop in loops.items():
            check_sizes(model, loop.dataloader.dataset, where)
            check_pictures(loop.dataloader.dataset, where)
            check_flips(loop.dataloader.dataset, where)
            if where != 'train':
                check_max_objects(model, loop.dataloader.dataset, where, runner.logger)
            for metric in getattr(getattr(loop, 'evaluator', None), 'metrics', ()):
                check_protocol(model, metric)
        if 'train' in loops:
            check_detector_learns(model)
            dataset = loops['train'].dataloader.dataset
            check_annotated(model, dataset)
            known = f'the training set{_file_of(dataset)}'
            _check_names(loops, dataset.metainfo, known)

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Check a checkpoint to test. One to train from may be of another data set."""
        self._loaded = True
        loops, model = _loops(runner), unwrapped_model(runner)
        if 'train' not in loops:
            check_weights(model, checkpoint)
            meta = (checkpoint.get('meta') or {}).get('dataset_meta') or {}
            _check_names(loops, meta, 'the training set of the checkpoint')

    def before_train(self, runner: Runner) -> None:
        """Check that a frozen detector is trained; checkpoints have been loaded by now."""
        if not self._loaded:
            check_detector_loaded(unwrapped_model(runner), runner.logger)

    def before_val_epoch(self, runner: Runner) -> None:
        """Check that the weights are finite."""
        check_finite(unwrapped_model(runner))

    def before_test_epoch(self, runner: Runner) -> None:
        """Check that the weights are finite."""
        check_finite(unwrapped_model(runner))


def _loops(runner: Runner) -> dict[str, BaseLoop]:
    loops: dict[str, Any] = dict(
        train=runner._train_loop, val=runner._val_loop, test=runner._test_loop
    )
    # A loop that is not going to run is still a config, or None.
    return {where: loop for where, loop in loops.items() if isinstance(loop, BaseLoop)}


def _file_of(dataset: Any) -> str:
    file = getattr(dataset, 'ann_file', '')
    return f' ({file})' if file else ''


def _check_names(loops: dict[str, BaseLoop], meta: dict[str, Any], known: str) -> None:
    for where, loop in loops.items():
        dataset = loop.dataloader.dataset
        check_names(dataset.metainfo, meta, f'the {where} set{_file_of(dataset)}', known)


def check_names(meta: dict[str, Any], trained: dict[str, Any], where: str, known: str) -> None:
    """Check that a data set has the same names, in the same order, as the training set.

    Args:
        meta: Metainfo of the data set.
        trained: Metainfo of the training set; missing keys are not compared.
        where: Name of the data set in the error message.
        known: Name of the training set in the error message.

    Raises:
        ValueError: The names or their order differ.
    """
    for kind in ('classes', 'predicates', 'scenes'):
        ours, theirs = list(meta.get(kind) or ()), list(trained.get(kind) or ())
        if ours and theirs and ours != theirs:
            same = sorted(ours) == sorted(theirs)
            raise ValueError(
                f'{where} has other {kind} than {known}{", in another order" if same else ""}: '
                f'{ours}, and {theirs}. A model identifies them by index: use the same list, or '
                f'set metainfo=dict({kind}=...) in both data sets'
            )


def check_annotated(model: SceneGraphDetector, dataset: Any) -> None:
    """Check that the training set has relations, and scenes if the model has a scene head.

    Raises:
        ValueError: No image has a relation, or no image has a scene.
    """
    if not hasattr(dataset, 'get_data_info'):
        return
    missing = {'relations': 'relation'}
    if model.scene_head is not None:
        missing['scene_label'] = 'scene'
    for i in range(len(dataset)):
        info = dataset.get_data_info(i)
        # A scene label may be 0, and relations are an array, so truthiness does not work.
        missing = {
            key: kind
            for key, kind in missing.items()
            if info.get(key) is None or (key == 'relations' and not len(info[key]))
        }
        if not missing:
            return
    kind = next(iter(missing.values()))
    raise ValueError(
        f'the training set{_file_of(dataset)} has no {kind} in any of its {len(dataset)} images'
        + (': set model.scene_head=None' if kind == 'scene' else '')
    )


def check_detector_learns(model: SceneGraphDetector) -> None:
    """Check that the heads of a required detector train if its backbone does.

    Raises:
        ValueError: The backbone trains but the heads of the detector do not.
    """
    finds = model.protocol is not SceneGraphProtocol.PREDCLS
    if finds and not model.freeze_detector and not model.detector_loss:
        raise ValueError(
            f'model.protocol={model.protocol.value!r} needs a detector, and with '
            'model.detector_loss=False and freeze_detector=False its heads do not train: set '
            'detector_loss=True, or freeze_detector=True and load a trained detector'
        )


def check_sizes(model: SceneGraphDetector, dataset: Any, where: str) -> None:
    """Check that the model's output sizes match the number of names in the data set.

    Raises:
        ValueError: A size differs, or the data set has no scenes for a scene head.
    """
    for kind, key, size in _sizes(model):
        names, file = list(dataset.metainfo.get(kind) or ()), _file_of(dataset)
        if kind == 'scenes' and not names:
            raise ValueError(f'the {where} set{file} has no scene names: set model.scene_head=None')
        if len(names) != size:
            raise ValueError(
                f'{key}={size}, but the {where} set{file} has {len(names)} {kind}: {names}'
            )


def _sizes(model: SceneGraphDetector) -> Iterator[tuple[str, str, int]]:
    if model.adapter.class_count is not None:
        key, count = model.adapter.class_count
        yield 'classes', model.detector_key + key, count
    relations = model.relation_head
    yield 'classes', 'model.relation_head.num_classes', relations.num_classes
    yield 'predicates', 'model.relation_head.num_predicates', relations.num_predicates
    if model.scene_head is not None:
        yield 'scenes', 'model.scene_head.num_scenes', model.scene_head.num_scenes


def _has_file_backend(dataset: Any) -> bool:
    """Whether pictures are read through a configured MMEngine file backend."""
    transforms = getattr(getattr(dataset, 'pipeline', None), 'transforms', ())
    return any(getattr(part, 'backend_args', None) for part in (dataset, *transforms))


def check_pictures(dataset: Any, where: str) -> None:
    """Check that pictures exist, for up to 100 evenly spaced samples of the data set.

    Raises:
        FileNotFoundError: A picture does not exist; names the first one.
    """
    parts = getattr(dataset, 'datasets', None) or [getattr(dataset, 'dataset', None)]
    if parts != [None]:
        # A wrapper, whose parts may lie in different folders.
        for part in parts:
            check_pictures(part, where)
        return
    if not hasattr(dataset, 'get_data_info') or _has_file_backend(dataset):
        return
    # One sample detects a wrong folder; the last one detects a truncated copy.
    chosen = sorted(set(np.linspace(0, len(dataset) - 1, _CHECKED_PICTURES).astype(int).tolist()))
    paths = [dataset.get_data_info(i).get('img_path') for i in chosen] if len(dataset) else []
    # A path without a scheme is local.
    local = [path for path in paths if path is not None and '://' not in str(path)]
    missing = [path for path in local if not Path(path).exists()]
    if missing:
        raise FileNotFoundError(
            f'{len(missing)} of {len(local)} checked pictures of the {where} set'
            f'{_file_of(dataset)} do not exist, the first is {missing[0]}. The path is data_root, '
            'data_prefix.img and "file_name" in the annotation file, joined'
        )


def check_protocol(model: SceneGraphDetector, metric: Any) -> None:
    """Check that a SceneGraphMetric has the protocol of the model.

    Raises:
        ValueError: The protocols differ.
    """
    if isinstance(metric, SceneGraphMetric) and metric.protocol != model.protocol.value:
        raise ValueError(
            f'model.protocol={model.protocol.value!r}, but val_evaluator or test_evaluator has '
            f'protocol={metric.protocol!r}: set the same protocol in all three'
        )
