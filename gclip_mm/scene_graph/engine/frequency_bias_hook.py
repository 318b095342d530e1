"""Hook that counts the relations of the training set for the modules that need the counts."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from mmdet.registry import HOOKS
from mmengine.dist import barrier, is_main_process
from mmengine.hooks import Hook
from mmengine.runner import BaseLoop, Runner

from ...engine.hooks.keys import reject_unknown_keys
from ..datasets.fingerprint import fingerprint_of
from ..datasets.statistics import relation_statistics
from ..models.heads.frequency_bias import (
    load_counts,
    load_fingerprint,
    save_counts,
)
from .unwrapped_model import unwrapped_model


@HOOKS.register_module()
@reject_unknown_keys
class FrequencyBiasHook(Hook):
    """Sets the training-set counts in every module of the model that needs them.

    These have a method ``set_counts``: :class:`FrequencyBias`, :class:`LogitAdjustment` and
    :class:`CountWeightedCrossEntropy`.

    Runs before checkpoints are loaded, so that the logits of a checkpoint take precedence. Does
    nothing in a run without training.

    Args:
        file: Cache of the counts (``.npz``), read if it exists. It holds a fingerprint of the
            training set, and counts of another one are refused. None: count in every run; a
            hundred thousand images take less than a minute.
        only_overlapping: Count as unrelated only pairs whose boxes overlap, as Neural Motifs
            does. False matches a :class:`PairSampler`, which draws negatives from all pairs.

    Raises:
        ValueError: The model has no such module; ``file`` has the counts of another training
            set or of another ``only_overlapping``; or the counts have another shape than the model.

    Example:
        >>> custom_hooks = [dict(type='FrequencyBiasHook')]
    """

    # Has to run before EMAHook (NORMAL) copies the model.
    priority = 'VERY_HIGH'

    def __init__(self, file: str | None = None, only_overlapping: bool = False) -> None:
        self.file = None if file is None else Path(file)
        self.only_overlapping = only_overlapping

    def before_run(self, runner: Runner) -> None:
        """Set the counts if the run trains."""
        if not isinstance(runner._train_loop, BaseLoop):
            return
        modules: Iterable[Any] = unwrapped_model(runner).modules()
        counted = [module for module in modules if hasattr(module, 'set_counts')]
        if not counted:
            raise ValueError(
                'FrequencyBiasHook: the model has no FrequencyBias, LogitAdjustment or '
                'CountWeightedCrossEntropy; remove the hook from custom_hooks, or set '
                'model.relation_head.frequency_bias'
            )
        counts = self._counts(runner)
        for module in counted:
            module.set_counts(*counts)

    def _counts(self, runner: Runner) -> tuple[np.ndarray, np.ndarray]:
        dataset = runner.train_dataloader.dataset
        mark = None if self.file is None else self._fingerprint(dataset)
        if self.file is not None and self.file.is_file():
            known = load_fingerprint(self.file)
            if known == mark:
                runner.logger.info(f'FrequencyBias: counts from {self.file}')
                return load_counts(self.file)
            if known is not None:
                raise ValueError(
                    f'{self.file} holds the counts of another training set, of other names, or of '
                    'another only_overlapping: delete it, or set another file in FrequencyBiasHook'
                )
            runner.logger.info(f'FrequencyBias: {self.file} does not say what it has counted')
        runner.logger.info('FrequencyBias: counting the relations of the training set')
        counts = count_relations(dataset, self.only_overlapping)
        if self.file is not None:
            if is_main_process():
                save_counts(self.file, *counts, fingerprint=mark)
            barrier()
        return counts

    def _fingerprint(self, dataset: Any) -> str:
        return fingerprint_of(dataset, only_overlapping=self.only_overlapping)


def count_relations(dataset: Any, only_overlapping: bool) -> tuple[np.ndarray, np.ndarray]:
    """Count the relations of a scene-graph data set, also inside wrappers such as ConcatDataset.

    Returns:
        ``relations`` (C, C, P) and ``unrelated`` (C, C), int64.

    Raises:
        ValueError: A data set has no predicates in its metainfo.
    """
    if hasattr(dataset, 'datasets'):
        parts = [count_relations(part, only_overlapping) for part in dataset.datasets]
        relations, unrelated = zip(*parts, strict=True)
        return np.sum(relations, axis=0), np.sum(unrelated, axis=0)
    if hasattr(dataset, 'dataset'):
        return count_relations(dataset.dataset, only_overlapping)
    if not dataset.metainfo.get('predicates'):
        raise ValueError(
            f'{type(dataset).__name__} has no relations to count: its metainfo has no '
            "'predicates'. Train on a SceneGraphDataset"
        )
    statistics = relation_statistics(dataset, only_overlapping)
    return statistics.relations, statistics.unrelated
