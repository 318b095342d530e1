"""Bi-level resampling: repeats images with rare predicates, and drops their frequent relations."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
from mmdet.registry import DATASETS
from mmengine.dataset import BaseDataset
from mmengine.logging import print_log

#: Predicate label of a relation that training ignores: its pair is neither positive nor negative.
IGNORED = -1
_MAX_REFETCH = 1000


def repeat_factors(counts: np.ndarray, threshold: float, draws: np.ndarray) -> np.ndarray:
    """How often an image with each predicate is repeated.

    The factor is ``max(1, sqrt(threshold / share))``, with the share of the predicate among all
    relations. Its fraction is rounded up with that probability.

    Args:
        counts: (P,) number of relations of each predicate.
        threshold: Share below which a predicate is rare.
        draws: (P,) uniform random numbers in [0, 1) for the rounding.

    Returns:
        (P,) int64, at least 1; 1 for a predicate without relations.
    """
    share = counts / max(counts.sum(), 1)
    factor = np.maximum(1.0, np.sqrt(threshold / np.where(counts > 0, share, threshold)))
    whole = np.floor(factor)
    return (whole + (draws < factor - whole)).astype(np.int64)


@DATASETS.register_module()
class PredicateResampling:
    """Bi-level data resampling (Li et al., Bipartite Graph Network, arXiv 2104.00308).

    1. **Images.** Each image is repeated as often as the largest factor of its predicates
       (:func:`repeat_factors`).
    2. **Relations.** In an image that is repeated ``r`` times, a relation whose predicate has the
       factor ``f`` is dropped with probability ``drop_rate * (1 - f / r)``, drawn again each time.
       Its pair is then ignored: it becomes neither a positive nor a negative.

    ``FrequencyBiasHook`` counts the relations before resampling.

    Args:
        dataset: Config of a :class:`SceneGraphDataset`, or the data set.
        threshold: Share among all relations below which a predicate is rare.
        drop_rate: In [0, 1].
        seed: Of the rounding of the factors, which is the same in every process.

    Raises:
        ValueError: ``threshold`` or ``drop_rate`` is out of range.
        TypeError: The data set is not a SceneGraphDataset.

    Example:
        >>> train_dataloader = dict(dataset=dict(
        ...     type='PredicateResampling', threshold=0.012, drop_rate=0.4,
        ...     dataset=dict(type='SceneGraphDataset', ann_file='train.json', ...)))
    """

    def __init__(
        self,
        dataset: dict | BaseDataset,
        threshold: float = 0.012,
        drop_rate: float = 0.4,
        seed: int = 0,
    ) -> None:
        if not threshold > 0:
            raise ValueError(f'threshold must be above 0, got {threshold}')
        if not 0 <= drop_rate <= 1:
            raise ValueError(f'drop_rate must be in [0, 1], got {drop_rate}')
        self.dataset: Any = DATASETS.build(dataset) if isinstance(dataset, dict) else dataset
        if not self.dataset.metainfo.get('predicates') or not hasattr(self.dataset, 'pipeline'):
            raise TypeError(
                f'PredicateResampling needs a SceneGraphDataset, got {type(self.dataset).__name__}'
            )
        self.threshold = threshold
        self.drop_rate = drop_rate
        self.seed = seed
        self._resample()

    def _resample(self) -> None:
        self.dataset.full_init()
        labels = [self._predicates(i) for i in range(len(self.dataset))]
        names = self.dataset.metainfo['predicates']
        counts = np.bincount(np.concatenate(labels), minlength=len(names))
        draws = np.random.RandomState(self.seed).random_sample(len(names))
        #: (P,) int64, factor of each predicate.
        self.factors = repeat_factors(counts, self.threshold, draws)
        #: (N,) int64, how often each image of the data set is repeated.
        self.repeats = np.array([self.factors[p].max(initial=1) for p in labels], np.int64)
        self._indices = np.repeat(np.arange(len(labels)), self.repeats)
        print_log(
            f'PredicateResampling: {len(labels)} images become {len(self)}; factors '
            + ', '.join(f'{n} {f}' for n, f in zip(names, self.factors, strict=True) if f > 1),
            'current',
        )

    def _predicates(self, index: int) -> np.ndarray:
        return np.asarray(self.dataset.get_data_info(index)['relations'], np.int64)[:, 2]

    @property
    def metainfo(self) -> dict:
        """Metainfo of the data set."""
        return copy.deepcopy(self.dataset.metainfo)

    def full_init(self) -> None:
        """Do nothing: the data set is initialised in the constructor."""

    def __len__(self) -> int:
        return len(self._indices)

    def get_data_info(self, idx: int) -> dict:
        """Annotations of an image; dropped relations have the label -1."""
        index = int(self._indices[idx])
        info = self.dataset.get_data_info(index)
        relations = np.array(info['relations'], np.int64).reshape(-1, 3)
        repeats = self.repeats[index]
        if repeats > 1 and len(relations):
            rate = self.drop_rate * (1 - self.factors[relations[:, 2]] / repeats)
            relations[np.random.random_sample(len(relations)) < rate, 2] = IGNORED
        info['relations'] = relations
        return info

    def __getitem__(self, idx: int) -> Any:
        for _ in range(_MAX_REFETCH):
            data = self.dataset.pipeline(self.get_data_info(idx))
            if data is not None:
                return data
            idx = np.random.randint(len(self))  # as BaseDataset does
        raise RuntimeError(f'the pipeline returned None for {_MAX_REFETCH} images')
