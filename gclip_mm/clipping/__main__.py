"""``python -m gclip_mm.clipping`` prints the table of rules, in Markdown, from the registry."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

from .config.registry import CLIPPERS

#: The order of the table; the other rules follow in alphabetical order.
_ORDER = ('Auto', 'ValueClip', 'NormClip', 'ParamNormClip', 'AGC', 'AutoClip', 'ZClip', 'AdaGC')


def table() -> Iterator[str]:
    """The lines of the table: a rule's names, what it does, its keys, its source."""
    yield '| `type` (alias) | what it does | keys and defaults | source |'
    yield '|---|---|---|---|'
    names = [*_ORDER, *(name for name in sorted(CLIPPERS) if name not in _ORDER)]
    for name in names:
        cls = CLIPPERS.get(name)
        title = ', '.join(f'`{alias}`' for alias in CLIPPERS.aliases(name))
        summary = (inspect.getdoc(cls) or '').split('\n')[0]
        keys = ', '.join(
            f'`{key}`' if p.default is p.empty else f'`{key}={p.default!r}`'
            for key, p in inspect.signature(cls).parameters.items()
        )
        yield f'| `{name}`{f" ({title})" if title else ""} | {summary} | {keys} | {cls.source} |'


if __name__ == '__main__':
    print('\n'.join(table()))
