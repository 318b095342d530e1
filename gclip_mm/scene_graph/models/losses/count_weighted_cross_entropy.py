"""Cross-entropy weighted by the effective number of relations of each predicate."""

from __future__ import annotations

import numpy as np
import torch
from mmdet.registry import MODELS
from torch import Tensor, nn
from torch.nn import functional as F

from ..heads.debias import predicate_counts


@MODELS.register_module()
class CountWeightedCrossEntropy(nn.Module):
    """Class-balanced cross-entropy (Cui et al., arXiv 1901.05555).

    The weight of a predicate with n relations in training is ``(1 - beta) / (1 - beta ** n)``,
    divided by the mean over all relations. That of "no relation" is 1, so relations and other
    pairs keep their balance. A predicate that does not occur, but which a flip may create, has the
    weight of one relation. The counts come from ``FrequencyBiasHook``.

    Args:
        beta: In [0, 1). 0: all weights are 1. The closer to 1, the closer the weights are to 1 / n.
        loss_weight: Factor of the loss.

    Raises:
        ValueError: ``beta`` is not in [0, 1).

    Example:
        >>> model = dict(relation_head=dict(
        ...     loss_predicate=dict(type='CountWeightedCrossEntropy', beta=0.999)))
    """

    def __init__(self, beta: float = 0.999, loss_weight: float = 1.0) -> None:
        super().__init__()
        if not 0 <= beta < 1:
            raise ValueError(f'beta must be in [0, 1), got {beta}')
        self.beta = beta
        self.loss_weight = loss_weight
        self.class_weight: Tensor
        # Not in checkpoints: every training run counts, and prediction needs no weights.
        self.register_buffer('class_weight', torch.zeros(0), persistent=False)

    def set_counts(self, relations: np.ndarray, unrelated: np.ndarray) -> None:
        """Set the weights from counts (C, C, P) of the training set; ``unrelated`` is not used."""
        counts = predicate_counts(relations, np.shape(relations)[-1])
        effective = (1 - self.beta) / (1 - self.beta ** np.maximum(counts, 1).astype(np.float64))
        if counts.any():
            effective /= np.average(effective, weights=counts)
        weight = torch.from_numpy(np.append(effective, 1.0))
        self.class_weight = weight.to(self.class_weight)

    def forward(self, logits: Tensor, labels: Tensor, avg_factor: float) -> Tensor:
        """Weighted sum over the pairs, divided by ``avg_factor``.

        Args:
            logits: (M, P + 1).
            labels: (M,) int64, P for "no relation".
            avg_factor: Number to divide by.

        Raises:
            RuntimeError: No counts were set.
        """
        if not len(self.class_weight):
            raise RuntimeError(
                'CountWeightedCrossEntropy has no counts: add dict(type="FrequencyBiasHook") to '
                'custom_hooks, which counts the training set'
            )
        if len(self.class_weight) != logits.shape[1]:
            raise RuntimeError(
                f'CountWeightedCrossEntropy has counts of {len(self.class_weight) - 1} predicates, '
                f'but the logits are of {logits.shape[1] - 1}'
            )
        weight = self.class_weight.to(logits.dtype)
        total = F.cross_entropy(logits, labels, weight=weight, reduction='sum')
        return self.loss_weight * total / avg_factor
