"""Losses of a relation head that scores all pairs of queries (EGTR, arXiv 2404.02072)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def sampled_relation_loss(
    logits: Tensor,
    matched: Tensor,
    target: Tensor,
    known: Tensor,
    weight: Tensor,
    counts: tuple[int | None, int | None],
    hardest: tuple[bool, bool],
) -> Tensor:
    """Binary cross-entropy of the annotated predicates and of some wrong ones of an image.

    Args:
        logits: (Q, Q, P) of all pairs of queries.
        matched: (G,) int64, the queries that have an object.
        target: (G, G, P) bool, the annotated predicates of their pairs.
        known: (G, G) bool, False for pairs that are neither right nor wrong.
        weight: (G, G), what the target of an annotated predicate is multiplied by.
        counts: Wrong predicates for each annotated one, of pairs of matched queries and of the
            other pairs. None: all.
        hardest: Whether these are the ones with the highest logits, or random ones; for both.

    Returns:
        (K,) losses: annotated predicates, wrong ones, wrong ones of the other pairs.
    """
    queries, predicates = logits.shape[0], logits.shape[2]
    inner = logits[matched[:, None], matched[None]]
    right = inner[target]
    both = torch.zeros(queries, dtype=torch.bool, device=logits.device)
    both[matched] = True
    wrong = (
        inner[~target & known[..., None]],
        logits[~(both[:, None] & both[None])].reshape(-1),
    )
    soft = weight[..., None].expand(-1, -1, predicates)[target]
    chosen = [
        _draw(part, None if count is None else count * len(right), hard)
        for part, count, hard in zip(wrong, counts, hardest, strict=True)
    ]
    values = torch.cat([right, *chosen])
    targets = torch.cat([soft, values.new_zeros(len(values) - len(right))])
    return F.binary_cross_entropy_with_logits(values, targets, reduction='none')


def _draw(values: Tensor, count: int | None, hardest: bool) -> Tensor:
    """``count`` of the values (N,): the highest, or random ones."""
    if count is None or count >= len(values):
        return values
    if hardest:
        return values[values.detach().topk(count).indices]
    return values[torch.randperm(len(values), device=values.device)[:count]]


def connectivity_loss(logits: Tensor, matched: Tensor, target: Tensor, known: Tensor) -> Tensor:
    """Binary cross-entropy of whether each pair of queries has a relation.

    Args:
        logits: (Q, Q).
        matched, target, known: As for :func:`sampled_relation_loss`.

    Returns:
        (Q * Q,) losses, without pairs that are not known.
    """
    related = torch.zeros_like(logits)
    counted = torch.ones_like(logits, dtype=torch.bool)
    related[matched[:, None], matched[None]] = target.any(dim=-1).to(logits.dtype)
    counted[matched[:, None], matched[None]] = known
    losses = F.binary_cross_entropy_with_logits(logits, related, reduction='none')
    return losses[counted]
