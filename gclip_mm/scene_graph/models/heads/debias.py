"""Corrections of the predicate logits for long-tailed training sets, applied in prediction."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import numpy as np
import torch
from mmdet.registry import MODELS
from torch import Tensor, nn

from .frequency_bias import load_counts

#: Maps the context of each pair (M, D) to predicate logits (M, P + 1).
FromContext = Callable[[Tensor], Tensor]


class Debias(nn.Module, ABC):
    """Base class of ``relation_head.debias``.

    Attributes:
        needs_context: Whether the head needs a context.
    """

    needs_context = False

    @abstractmethod
    def forward(
        self, logits: Tensor, context: Tensor | None, from_context: FromContext | None
    ) -> Tensor:
        """Return the logits of prediction, or ``logits`` unchanged in training.

        Args:
            logits: (M, P + 1), "no relation" last.
            context: (M, D), what the context says of each pair; None without one.
            from_context: Computes ``logits`` from another context, all else being equal.
        """


@MODELS.register_module()
class LogitAdjustment(Debias):
    """Subtracts ``tau`` times the log-frequency of each predicate (Menon et al., arXiv 2007.07314).

    The frequency is relative to that of the most frequent predicate, whose logit stays as it is;
    so does that of "no relation". A predicate that the training set never has would get an
    infinite logit, and take over; it is masked: its logit is that of an impossible class.

    The training is not changed, so ``tau`` can be chosen on the validation set afterwards: a
    larger one gives a higher mR@K and a lower R@K. The counts come from ``FrequencyBiasHook``,
    from a checkpoint of a run with this key, or from ``file``.

    Args:
        num_predicates: P; set by the head, as is ``fc_dim``, which is not used.
        tau: Strength; 0 changes masked predicates only.
        file: ``.npz`` of ``FrequencyBiasHook(file=...)``, for a model that was trained without
            this key.

    Raises:
        ValueError: ``tau`` is negative, or the counts are of another number of predicates.

    Example:
        >>> model = dict(relation_head=dict(debias=dict(type='LogitAdjustment', tau=0.6)))
    """

    def __init__(
        self, num_predicates: int, fc_dim: int = 0, tau: float = 0.6, file: str | None = None
    ) -> None:
        super().__init__()
        if not 0 <= tau < float('inf'):
            raise ValueError(f'tau must be a finite number of at least 0, got {tau}')
        self.tau = tau
        self.counts: Tensor
        # Counts of a file are those of the config, not of the checkpoint.
        self.register_buffer(
            'counts', torch.full((num_predicates,), -1, dtype=torch.int64), persistent=file is None
        )
        if file is not None:
            self.set_counts(*load_counts(file))

    def set_counts(self, relations: np.ndarray, unrelated: np.ndarray) -> None:
        """Set the counts (C, C, P) of the training set; ``unrelated`` is not used.

        Raises:
            ValueError: They are of another number of predicates, or all are 0.
        """
        counts = predicate_counts(relations, len(self.counts))
        if not counts.any():
            raise ValueError('LogitAdjustment: the training set has no relation')
        self.counts.copy_(torch.from_numpy(counts))

    def forward(
        self, logits: Tensor, context: Tensor | None, from_context: FromContext | None
    ) -> Tensor:
        """See :meth:`Debias.forward`."""
        if self.training:
            return logits
        if bool((self.counts < 0).any()):
            raise RuntimeError(
                'LogitAdjustment has no counts: add dict(type="FrequencyBiasHook") to custom_hooks '
                'of the training, load a checkpoint that has them, or set '
                'debias=dict(type="LogitAdjustment", file="counts.npz")'
            )
        counts = self.counts.to(logits.dtype)
        prior = (counts / counts.max()).log()
        adjusted = logits[:, :-1] - self.tau * torch.where(counts > 0, prior, 0.0)
        adjusted = adjusted.masked_fill(counts == 0, torch.finfo(logits.dtype).min)
        return torch.cat([adjusted, logits[:, -1:]], dim=1)


@MODELS.register_module()
class TDE(Debias):
    """Total direct effect of the context (Tang et al., arXiv 2002.11949).

    Prediction takes the difference between the logits and those of a counterfactual pair, whose
    context is the average one, while its union map, its classes and the frequency bias stay: what
    these say of themselves cancels. The average is a moving one over the pairs of training.

    The difference is that of the published predictor, for the fusion of this head. Two things
    differ from its code: the average here is one of the context vectors of pairs, there one of the
    features that enter the context, which is run on them; and its additional losses for each branch
    are not used.

    Args:
        num_predicates: P; set by the head.
        fc_dim: D, size of a pair's context; set by the head.
        momentum: Share of each training batch in the average.
        correct: Divide the average by the sum of its weights, so that it does not start at zero.
            False: as published.

    Raises:
        ValueError: ``momentum`` is not in (0, 1].

    Example:
        >>> model = dict(relation_head=dict(debias=dict(type='TDE')))
    """

    needs_context = True

    def __init__(
        self, num_predicates: int, fc_dim: int, momentum: float = 0.0005, correct: bool = True
    ) -> None:
        super().__init__()
        if not 0 < momentum <= 1:
            raise ValueError(f'momentum must be in (0, 1], got {momentum}')
        self.momentum = momentum
        self.correct = correct
        self.average: Tensor
        self.weight: Tensor
        self.register_buffer('average', torch.zeros(fc_dim))
        self.register_buffer('weight', torch.zeros(()))

    @torch.no_grad()
    def _observe(self, context: Tensor) -> None:
        if len(context):
            mean = context.detach().to(self.average).mean(dim=0)
            # A batch that is not finite must not spoil the average for ever.
            mean = torch.where(mean.isfinite(), mean, self.average)
            self.average.lerp_(mean, self.momentum)
            self.weight.lerp_(torch.ones_like(self.weight), self.momentum)

    def forward(
        self, logits: Tensor, context: Tensor | None, from_context: FromContext | None
    ) -> Tensor:
        """See :meth:`Debias.forward`."""
        assert context is not None  # the head checks
        if self.training:
            self._observe(context)
            return logits
        assert from_context is not None
        if not self.weight:
            raise RuntimeError(
                'TDE has no average context: train with relation_head.debias=dict(type="TDE")'
            )
        average = self.average / self.weight.to(self.average) if self.correct else self.average
        return logits - from_context(average.to(context).expand_as(context))


def predicate_counts(relations: np.ndarray, num_predicates: int) -> np.ndarray:
    """(P,) int64 counts of each predicate, from counts (C, C, P) by classes.

    Raises:
        ValueError: The number of predicates is another one.
    """
    counts = np.asarray(relations).reshape(-1, np.shape(relations)[-1]).sum(axis=0)
    if len(counts) != num_predicates:
        raise ValueError(
            f'the model has {num_predicates} predicates, but the counts are of {len(counts)}'
        )
    return counts.astype(np.int64)
