"""Says at once, and by the key of the config, where model, data and metric do not fit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from mmdet.registry import HOOKS
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import BaseLoop, Runner
from torch import nn

from ...engine.hooks.keys import reject_unknown_keys
from ..evaluation.metric import SceneGraphMetric
from ..models.detectors import SceneGraphRCNN
from ..models.protocol import SceneGraphProtocol
from ..models.weights import check_weights

#: Pictures of each data set that have to be there.
_LOOKED_FOR = 100


@HOOKS.register_module()
@reject_unknown_keys
class SceneGraphCheckHook(Hook):
    """Compares a scene-graph model with its data sets and metrics before anything runs.

    Without it a wrong number of classes is an index out of range in the middle of training, and a
    model of one protocol, or of names in one order, measured by another gives figures that mean
    nothing.

    Raises:
        ValueError: The model is no SceneGraphRCNN; it has another number of classes, predicates or
            scenes than a data set; a data set names them otherwise than the training set, or than
            that of the checkpoint that is tested; that checkpoint is of another model; the training
            set has no relation, or no scene for a model that is to tell scenes; a metric has
            another protocol; a detector that has to find or name objects is trained without its
            losses.
        FileNotFoundError: Pictures of a data set are not where it says.

    Example:
        >>> custom_hooks = [dict(type='SceneGraphCheckHook'), dict(type='FrequencyBiasHook')]
    """

    # Before FrequencyBiasHook, which trips over the wrong numbers too.
    priority = 'HIGHEST'

    def before_run(self, runner: Runner) -> None:
        model = _unwrapped(runner)
        if not isinstance(model, SceneGraphRCNN):
            raise ValueError(
                f'SceneGraphCheckHook: the model is a {type(model).__name__}, no SceneGraphRCNN; '
                'take the hook out of custom_hooks'
            )
        loops = _loops(runner)
        for where, loop in loops.items():
            check_sizes(model, loop.dataloader.dataset, where)
            check_pictures(loop.dataloader.dataset, where)
            for metric in getattr(getattr(loop, 'evaluator', None), 'metrics', ()):
                check_protocol(model, metric)
        if 'train' in loops:
            check_detector_learns(model)
            dataset = loops['train'].dataloader.dataset
            check_annotated(model, dataset)
            known = f'the training set{_file_of(dataset)}'
            _check_names(loops, dataset.metainfo, known)

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        loops = _loops(runner)
        # A checkpoint that training begins with may be of another data set.
        if 'train' not in loops:
            check_weights(_unwrapped(runner), checkpoint)
            meta = (checkpoint.get('meta') or {}).get('dataset_meta') or {}
            _check_names(loops, meta, 'the training set of the checkpoint')


def _unwrapped(runner: Runner) -> nn.Module:
    return runner.model.module if is_model_wrapper(runner.model) else runner.model


def _loops(runner: Runner) -> dict[str, BaseLoop]:
    loops = dict(train=runner._train_loop, val=runner._val_loop, test=runner._test_loop)
    # What is not going to run is still a config, or None.
    return {where: loop for where, loop in loops.items() if isinstance(loop, BaseLoop)}


def _file_of(dataset: Any) -> str:
    file = getattr(dataset, 'ann_file', '')
    return f' ({file})' if file else ''


def _check_names(loops: dict[str, BaseLoop], meta: dict[str, Any], known: str) -> None:
    for where, loop in loops.items():
        dataset = loop.dataloader.dataset
        check_names(dataset.metainfo, meta, f'the {where} set{_file_of(dataset)}', known)


def check_names(meta: dict[str, Any], trained: dict[str, Any], where: str, known: str) -> None:
    """Raise where a data set names something otherwise than the one that was trained on.

    Args:
        meta: metainfo of the data set.
        trained: metainfo of the training set; what it does not tell is not compared.
        where: what the data set is called in the error.
        known: what the training set is called.
    """
    for kind in ('classes', 'predicates', 'scenes'):
        ours, theirs = list(meta.get(kind) or ()), list(trained.get(kind) or ())
        if ours and theirs and ours != theirs:
            same = sorted(ours) == sorted(theirs)
            raise ValueError(
                f'{where} has other {kind} than {known}{", in another order" if same else ""}: '
                f'{ours}, and {theirs}. A model knows them by their place: list them alike, or '
                f'give both data sets metainfo=dict({kind}=...)'
            )


def check_annotated(model: SceneGraphRCNN, dataset: Any) -> None:
    """Raise where the training set has nothing to learn relations, or scenes, from."""
    if not hasattr(dataset, 'get_data_info'):
        return
    missing = {'relations': 'relation'}
    if model.scene_head is not None:
        missing['scene_label'] = 'scene'
    for i in range(len(dataset)):
        info = dataset.get_data_info(i)
        # A scene may be the one of the number 0, and relations an array.
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


def check_detector_learns(model: SceneGraphRCNN) -> None:
    """Raise where a detector is needed whose heads stay as they are beside a changing backbone."""
    finds = model.protocol is not SceneGraphProtocol.PREDCLS
    if finds and not model.freeze_detector and not model.detector_loss:
        raise ValueError(
            f'model.protocol={model.protocol.value!r} needs a detector, and with '
            'model.detector_loss=False and freeze_detector=False its RPN and box head learn '
            'nothing: set detector_loss=True, or freeze_detector=True and load a trained one'
        )


def check_sizes(model: SceneGraphRCNN, dataset: Any, where: str) -> None:
    """Raise where the model has another number of outputs than the data set has names."""
    for kind, key, size in _sizes(model):
        names, file = list(dataset.metainfo.get(kind) or ()), _file_of(dataset)
        if kind == 'scenes' and not names:
            raise ValueError(f'the {where} set{file} names no scenes: set model.scene_head=None')
        if len(names) != size:
            raise ValueError(
                f'{key}={size}, but the {where} set{file} names {len(names)} {kind}: {names}'
            )


def _sizes(model: SceneGraphRCNN) -> Iterator[tuple[str, str, int]]:
    box_head = model.roi_head.bbox_head
    yield 'classes', 'model.roi_head.bbox_head.num_classes', box_head.num_classes
    relations = model.relation_head
    yield 'classes', 'model.relation_head.num_classes', relations.num_classes
    yield 'predicates', 'model.relation_head.num_predicates', relations.num_predicates
    if model.scene_head is not None:
        yield 'scenes', 'model.scene_head.num_scenes', model.scene_head.num_scenes


def _reads_elsewhere(dataset: Any) -> bool:
    """Whether pictures come by a backend of MMEngine's that is told what to do."""
    transforms = getattr(getattr(dataset, 'pipeline', None), 'transforms', ())
    return any(getattr(part, 'backend_args', None) for part in (dataset, *transforms))


def check_pictures(dataset: Any, where: str) -> None:
    """Raise where pictures are missing; a hundred are looked for, spread over the data set."""
    parts = getattr(dataset, 'datasets', None) or [getattr(dataset, 'dataset', None)]
    if parts != [None]:
        # A wrapper, of which each part may be somewhere else.
        for part in parts:
            check_pictures(part, where)
        return
    if not hasattr(dataset, 'get_data_info') or _reads_elsewhere(dataset):
        return
    # Where they all lie in a wrong folder one would do; of a copy that was cut short, the last.
    chosen = sorted(set(np.linspace(0, len(dataset) - 1, _LOOKED_FOR).astype(int).tolist()))
    paths = [dataset.get_data_info(i).get('img_path') for i in chosen] if len(dataset) else []
    # A path without a scheme is one on this machine.
    local = [path for path in paths if path is not None and '://' not in str(path)]
    missing = [path for path in local if not Path(path).exists()]
    if missing:
        raise FileNotFoundError(
            f'{len(missing)} of {len(local)} pictures of the {where} set{_file_of(dataset)} that '
            f'were looked for are not there, the first is {missing[0]}: data_root, '
            'data_prefix.img and "file_name" in the file are put together'
        )


def check_protocol(model: SceneGraphRCNN, metric: Any) -> None:
    """Raise where a metric measures another protocol than the model's."""
    if isinstance(metric, SceneGraphMetric) and metric.protocol != model.protocol.value:
        raise ValueError(
            f'model.protocol={model.protocol.value!r}, but val_evaluator or test_evaluator has '
            f'protocol={metric.protocol!r}: give all three the same'
        )
