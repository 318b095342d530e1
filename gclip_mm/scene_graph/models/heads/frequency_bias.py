"""Predicate logits from the classes of subject and object alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from mmdet.registry import MODELS
from torch import Tensor, nn


@MODELS.register_module()
class FrequencyBias(nn.Module):
    """A trainable logit for each (subject class, object class, predicate), from counts.

    Zellers et al., Neural Motifs, arXiv 1711.06640: log-frequencies of the training set, added to
    what the network sees. Until counts are set the bias is not usable: they come from ``file``,
    from a checkpoint, or from
    :class:`~gclip_mm.scene_graph.engine.FrequencyBiasHook`, which counts the training set when a
    run begins.

    Args:
        num_classes: Object classes C.
        num_predicates: Predicates P.
        file: ``.npz`` with ``relations`` (C, C, P) and ``unrelated`` (C, C) counts.
        smoothing: Added to frequencies, so that what never occurs has a finite logit. The
            original's value.
        trainable: Train the logits on.

    Raises:
        ValueError: Counts of another shape; the message gives both.
        FileNotFoundError: ``file`` is not there.

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
        self.register_buffer('ready', torch.tensor(False))
        if file is not None:
            self.set_counts(*load_counts(file))

    def set_counts(self, relations: np.ndarray, unrelated: np.ndarray) -> None:
        """Set the logits from counts.

        Args:
            relations: (C, C, P), how often each predicate relates each two classes.
            unrelated: (C, C), how often two objects of these classes are not related.
        """
        shape = (self.num_classes, self.num_classes, self.num_predicates)
        if relations.shape != shape or unrelated.shape != shape[:2]:
            raise ValueError(
                f'the model has {self.num_classes} classes and {self.num_predicates} predicates, '
                f'so counts must have shapes {shape} and {shape[:2]}; got {relations.shape} and '
                f'{unrelated.shape}'
            )
        counts = np.concatenate([relations, unrelated[..., None]], axis=2).astype(np.float64)
        total = counts.sum(axis=2, keepdims=True)
        # Two classes that never met tell nothing: all predicates alike.
        frequency = np.divide(
            counts, total, out=np.full_like(counts, 1 / counts.shape[2]), where=total > 0
        )
        logits = torch.from_numpy(np.log(frequency + self.smoothing))
        with torch.no_grad():
            self.weight.copy_(logits.flatten(0, 1).to(self.weight))
            self.ready.fill_(True)

    def forward(self, labels: Tensor, pairs: Tensor) -> Tensor:
        """Object labels (N,) int64 and pairs (M, 2) to logits (M, P + 1), no relation last.

        Raises:
            RuntimeError: No counts were ever set.
        """
        if not self.ready:
            raise RuntimeError(
                'FrequencyBias has no counts yet. Add '
                "dict(type='FrequencyBiasHook') to custom_hooks, which counts the training set (a "
                'config that inherits hooks and has some of its own needs custom_hooks='
                '[*_base_.custom_hooks, ...]), or give FrequencyBias(file=...), or load a '
                'checkpoint that has them'
            )
        return self.weight[labels[pairs[:, 0]] * self.num_classes + labels[pairs[:, 1]]]


def load_counts(file: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """Read ``relations`` and ``unrelated`` of a ``.npz`` file.

    Raises:
        FileNotFoundError: It is not there.
        ValueError: It is damaged or lacks an array.
    """
    try:
        with np.load(file, allow_pickle=False) as arrays:
            return arrays['relations'], arrays['unrelated']
    except FileNotFoundError:
        raise
    except Exception as error:  # zipfile, pickle and KeyError alike
        raise ValueError(
            f"{file} does not hold the counts of a FrequencyBias ('relations' and 'unrelated'): "
            f'{error}'
        ) from error


def save_counts(file: str | Path, relations: np.ndarray, unrelated: np.ndarray) -> None:
    """Write what :func:`load_counts` reads, whole or not at all."""
    file = Path(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f'.{file.stem}.partial.npz')
    np.savez_compressed(partial, relations=relations, unrelated=unrelated)
    partial.replace(file)
