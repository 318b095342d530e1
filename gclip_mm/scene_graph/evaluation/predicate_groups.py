"""Head, body and tail: groups of predicates by their frequency in training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

#: The groups of VG150 by Li et al., arXiv 2104.00308: more than 10000, more than 500, and fewer
#: relations in training; the tail has the predicates that are not listed.
BGNN_HEAD = ('has', 'of', 'on', 'wearing')
BGNN_BODY = (
    *('above', 'behind', 'holding', 'in', 'in front of', 'near', 'riding', 'sitting on'),
    *('standing on', 'under', 'wears', 'with'),
)
NAMED = ('thirds', 'bgnn')


def thirds(counts: np.ndarray) -> dict[str, list[int]]:
    """Split predicates into three groups of equal size, the most frequent first.

    Args:
        counts: (P,) relations of each predicate in training; ties go to the lower label. If P is
            not a multiple of 3, the first groups have one more.

    Returns:
        ``head``, ``body`` and ``tail``: labels in ascending order.

    Raises:
        ValueError: There are fewer than three predicates.
    """
    if len(counts) < 3:
        raise ValueError(f"predicate_groups='thirds' needs three predicates, got {len(counts)}")
    parts = np.array_split(np.argsort(-np.asarray(counts), kind='stable'), 3)
    names = ('head', 'body', 'tail')
    return {name: sorted(part.tolist()) for name, part in zip(names, parts, strict=True)}


def predicate_groups(
    groups: str | Mapping[str, Sequence[str]],
    predicates: Sequence[str],
    counts: np.ndarray | None = None,
) -> dict[str, list[int]]:
    """Labels of each group.

    Args:
        groups: ``'thirds'``; ``'bgnn'``, the published groups of VG150; or group -> names.
        predicates: Names in label order.
        counts: (P,) relations in training, for ``'thirds'``.

    Raises:
        ValueError: A name is unknown, a group is empty, or ``counts`` is missing.
    """
    names = list(predicates)
    if groups == 'thirds':
        if counts is None:
            raise ValueError("predicate_groups='thirds' needs train_ann_file, to count predicates")
        return thirds(counts)
    if groups == 'bgnn':
        tail = [name for name in names if name not in BGNN_HEAD + BGNN_BODY]
        groups = dict(head=BGNN_HEAD, body=BGNN_BODY, tail=tail)
    if isinstance(groups, str):
        raise ValueError(f'predicate_groups must be one of {NAMED} or a dict, got {groups!r}')
    result = {}
    for group, members in groups.items():
        unknown = [name for name in members if name not in names]
        if unknown or not members:
            what = f'names {unknown[0]!r}' if unknown else 'is empty'
            raise ValueError(f'predicate_groups[{group!r}] {what}; the predicates are {names}')
        result[group] = [names.index(name) for name in members]
    return result
