"""Counts the training set for the frequency bias when a training run begins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from mmdet.registry import HOOKS
from mmengine.dist import barrier, is_main_process
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import BaseLoop, Runner

from ...engine.hooks.keys import reject_unknown_keys
from ..datasets.statistics import relation_statistics
from ..models.heads.frequency_bias import FrequencyBias, load_counts, save_counts


@HOOKS.register_module()
@reject_unknown_keys
class FrequencyBiasHook(Hook):
    """Gives every :class:`FrequencyBias` of the model the counts of the training set.

    Before checkpoints are loaded, so that the logits of a checkpoint win. Does nothing where only
    testing takes place.

    Args:
        file: Keep the counts here (``.npz``), and read them when they are already there. None:
            count in every run; a hundred thousand images take less than a minute.
        only_overlapping: Count as unrelated only pairs whose boxes overlap, as Neural Motifs
            does. False fits a :class:`PairSampler`, which draws its negatives from all pairs.

    Raises:
        ValueError: The model has no FrequencyBias; or the counts do not fit the model.

    Example:
        >>> custom_hooks = [dict(type='FrequencyBiasHook')]
    """

    # Before EMAHook (NORMAL) copies the model.
    priority = 'VERY_HIGH'

    def __init__(self, file: str | None = None, only_overlapping: bool = False) -> None:
        self.file = None if file is None else Path(file)
        self.only_overlapping = only_overlapping

    def before_run(self, runner: Runner) -> None:
        if not isinstance(runner._train_loop, BaseLoop):
            return
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        biases = [m for m in model.modules() if isinstance(m, FrequencyBias)]
        if not biases:
            raise ValueError(
                'FrequencyBiasHook: the model has no FrequencyBias; take the hook out of '
                'custom_hooks, or set model.relation_head.frequency_bias'
            )
        counts = self._counts(runner)
        for bias in biases:
            bias.set_counts(*counts)

    def _counts(self, runner: Runner) -> tuple[np.ndarray, np.ndarray]:
        if self.file is not None and self.file.is_file():
            runner.logger.info(f'FrequencyBias: counts from {self.file}')
            return load_counts(self.file)
        runner.logger.info('FrequencyBias: counting the relations of the training set')
        counts = count_relations(runner.train_dataloader.dataset, self.only_overlapping)
        if self.file is not None:
            if is_main_process():
                save_counts(self.file, *counts)
            barrier()
        return counts


def count_relations(dataset: Any, only_overlapping: bool) -> tuple[np.ndarray, np.ndarray]:
    """Counts of a scene-graph data set, or of what wrappers such as ConcatDataset wrap.

    Returns:
        ``relations`` (C, C, P) and ``unrelated`` (C, C), int64.

    Raises:
        ValueError: A data set without relations.
    """
    if hasattr(dataset, 'datasets'):
        parts = [count_relations(part, only_overlapping) for part in dataset.datasets]
        return sum(part[0] for part in parts), sum(part[1] for part in parts)
    if hasattr(dataset, 'dataset'):
        return count_relations(dataset.dataset, only_overlapping)
    if not dataset.metainfo.get('predicates'):
        raise ValueError(
            f'{type(dataset).__name__} has no relations to count: its metainfo has no '
            "'predicates'. Train on a SceneGraphDataset"
        )
    statistics = relation_statistics(dataset, only_overlapping)
    return statistics.relations, statistics.unrelated
