"""Reads layouts of other scene-graph code as if they were this package's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

#: Name that other code gives to "no object" and "no relation", which have no id here.
BACKGROUND = '__background__'
#: Lists of SGG-Benchmark's COCO files, and their names here.
_ALIASES = {'rel_categories': 'predicates', 'rel_annotations': 'relations'}


def own_layout(content: Mapping[str, Any], source: str) -> Mapping[str, Any]:
    """Rename the lists of SGG-Benchmark's layout; other content is returned as it is.

    SGG-Benchmark keeps relations in COCO files under ``rel_annotations``, whose entries have the
    keys of ``relations``, and predicates under ``rel_categories``: names with ids, or plain names,
    whose ids then count from 1. ``__background__`` is dropped.

    Args:
        content: A parsed file.
        source: Its name in error messages.

    Raises:
        ValueError: A list is there under both names.
    """
    if not any(alias in content for alias in _ALIASES):
        return content
    renamed = dict(content)
    for alias, key in _ALIASES.items():
        if alias in renamed:
            if key in renamed:
                raise ValueError(f'{source} has both {alias!r} and {key!r}; remove one')
            renamed[key] = renamed.pop(alias)
    names = renamed.get('predicates')
    if isinstance(names, list):
        renamed['predicates'] = _predicates(names)
    return renamed


def _predicates(entries: Sequence[Any]) -> list[Any]:
    """``rel_categories`` as dicts with ids, without the background."""
    with_ids = [
        dict(id=number, name=entry) if isinstance(entry, str) else entry
        for number, entry in enumerate(entries, start=0 if BACKGROUND in entries[:1] else 1)
    ]
    return [
        entry
        for entry in with_ids
        if not (isinstance(entry, Mapping) and entry.get('name') == BACKGROUND)
    ]
