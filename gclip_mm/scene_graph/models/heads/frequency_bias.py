"""Predicate logits from the classes of subject and object."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmdet.registry import MODELS
from torch import Tensor, nn


@MODELS.register_module()
class FrequencyBias(nn.Module):
    """A trainable logit for each (subject class, object class, predicate), initialised from counts.

    The bias adds log-frequencies of the training set to the logits of the network (Zellers et al.,
    Neural Motifs, arXiv 1711.06640). It needs counts before it can be used. They come from
    ``file``, from a checkpoint, or from
    :class:`~gclip_mm.scene_graph.engine.FrequencyBiasHook`, which counts the training set at the
    start of a run.

    Args:
        num_classes: Object classes C.
        num_predicates: Predicates P.
        file: ``.npz`` with ``relations`` (C, C, P) and ``unrelated`` (C, C) counts.
        smoothing: Added to frequencies, so that unseen triplets have a finite logit. The default
            is that of the original.
        trainable: Whether training updates the logits.

    Raises:
        ValueError: The counts have another shape; the message gives both shapes.
        FileNotFoundError: ``file`` does not exist.

    Example:
        >>> model = dict(relation_head=dict(frequency_bias=dict(type='FrequencyBias')))
        >>> custom_hooks = [dict(type='FrequencyBiasHook')]
    """

    def __init__(
        self,
        num_classes: int,
        num_predicates: int,
        file: str | None = None,
        smoothing: float = 1e-3,
        trainable: bool = True,
    ) -> None:
        super().__init__()
        if smoothing <= 0:
            raise ValueError(f'smoothing must be positive, got {smoothing}')
        self.num_classes = num_classes
        self.num_predicates = num_predicates
        self.smoothing = smoothing
        self.weight = nn.Parameter(
            torch.zeros(num_classes**2, num_predicates + 1), requires_grad=trainable
        )
        self.ready: Tensor
        self.register_buffer('ready', torch.tensor(False))
        if file is not None:
            self.set_counts(*load_counts(file))

    def set_counts(self, relations: np.ndarray, unrelated: np.ndarray) -> None:
        """Set the logits from counts.

        Args:
            relations: (C, C, P), number of relations by subject class, object class and predicate.
            unrelated: (C, C), number of pairs without a relation by subject and object class.

        Raises:
            ValueError: The counts have another shape.
        """
        shape = (self.num_classes, self.num_classes, self.num_predicates)
        if relations.shape != shape or unrelated.shape != shape[:2]:
            raise ValueError(
                f'the model has {self.num_classes} classes and {self.num_predicates} predicates, '
                f'so counts must have shapes {shape} and {shape[:2]}; got {relations.shape} and '
                f'{unrelated.shape}'
            )
        logits = torch.from_numpy(self._logits(relations, unrelated))
        with torch.no_grad():
            self.weight.copy_(logits.flatten(0, 1).to(self.weight))
            self.ready.fill_(True)

    def _logits(self, relations: np.ndarray, unrelated: np.ndarray) -> np.ndarray:
        """(C, C, P + 1) float64 logits of checked counts."""
        counts = np.concatenate([relations, unrelated[..., None]], axis=2).astype(np.float64)
        total = counts.sum(axis=2, keepdims=True)
        # A pair of classes that never occurs gets a uniform distribution.
        frequency = np.divide(
            counts, total, out=np.full_like(counts, 1 / counts.shape[2]), where=total > 0
        )
        return np.log(frequency + self.smoothing)

    def forward(self, labels: Tensor, pairs: Tensor) -> Tensor:
        """Map object labels (N,) int64 and pairs (M, 2) to logits (M, P + 1), "no relation" last.

        Raises:
            RuntimeError: No counts were set.
        """
        if not self.ready:
            raise RuntimeError(
                'FrequencyBias has no counts yet. Add '
                "dict(type='FrequencyBiasHook') to custom_hooks, which counts the training set (a "
                'config that adds hooks to inherited ones needs custom_hooks='
                '[*_base_.custom_hooks, ...]), or set FrequencyBias(file=...), or load a '
                'checkpoint with counts'
            )
        return self.weight[labels[pairs[:, 0]] * self.num_classes + labels[pairs[:, 1]]]


@MODELS.register_module()
class LogCountBias(FrequencyBias):
    """The bias of the published EGTR (arXiv 2404.02072): logarithms of counts, and not trained.

    ``log(n + smoothing / (N + smoothing))`` for a predicate that was counted n times among the N
    relations of its classes. In contrast to :class:`FrequencyBias` it is the higher, the commoner
    both classes are, and about -28 or lower for a predicate that was never counted. "No relation"
    has the logit 0, which an :class:`EGTRHead` does not use.

    Args:
        num_classes, num_predicates, file: As for :class:`FrequencyBias`.
        smoothing: The default is that of the original.
        trainable: Whether training updates the logits.

    Example:
        >>> model = dict(relation_head=dict(frequency_bias=dict(type='LogCountBias')))
    """

    def __init__(
        self,
        num_classes: int,
        num_predicates: int,
        file: str | None = None,
        smoothing: float = 1e-12,
        trainable: bool = False,
    ) -> None:
        super().__init__(num_classes, num_predicates, file, smoothing, trainable)

    def _logits(self, relations: np.ndarray, unrelated: np.ndarray) -> np.ndarray:
        counts = relations.astype(np.float64)
        total = counts.sum(axis=2, keepdims=True)
        logits = np.log(counts + self.smoothing / (total + self.smoothing))
        return np.concatenate([logits, np.zeros_like(total)], axis=2)


def load_counts(file: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """Read ``relations`` and ``unrelated`` from a ``.npz`` file.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: The file is damaged or lacks an array.
    """
    try:
        with np.load(file, allow_pickle=False) as arrays:
            return arrays['relations'], arrays['unrelated']
    except FileNotFoundError:
        raise
    except Exception as error:  # zipfile, pickle and KeyError among others
        raise ValueError(
            f"{file} does not contain the counts of a FrequencyBias ('relations' and 'unrelated'): "
            f'{error}'
        ) from error


def load_fingerprint(file: str | Path) -> str | None:
    """The fingerprint in a file of :func:`save_counts`; None if it has none.

    Raises:
        ValueError: The file is damaged.
    """
    load_counts(file)  # names what is wrong
    with np.load(file, allow_pickle=False) as arrays:
        return str(arrays['fingerprint']) if 'fingerprint' in arrays else None


def save_counts(
    file: str | Path,
    relations: np.ndarray,
    unrelated: np.ndarray,
    fingerprint: str | None = None,
) -> None:
    """Write a file for :func:`load_counts`, atomically.

    Args:
        file: ``.npz`` file to write.
        relations, unrelated: The counts.
        fingerprint: Of the data set that was counted.
    """
    file = Path(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f'.{file.stem}.partial.npz')
    arrays: dict[str, Any] = dict(relations=relations, unrelated=unrelated)
    if fingerprint is not None:
        arrays['fingerprint'] = np.array(fingerprint)
    np.savez_compressed(partial, **arrays)
    partial.replace(file)
