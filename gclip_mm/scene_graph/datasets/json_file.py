"""Reads JSON files; errors name the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read_json(path: str | Path, source: str | None = None, expect: type = dict) -> Any:
    """Read a JSON file.

    Args:
        path: File on disk.
        source: Name of the file in error messages. Defaults to ``path``.
        expect: Required type of the top level.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: The file is not valid JSON, for example because it is truncated, or its top
            level has another type.
    """
    source = source or str(path)
    try:
        content = json.loads(Path(path).read_text(encoding='utf-8'))
    except ValueError as error:  # includes UnicodeDecodeError
        raise ValueError(f'{source} is not valid JSON: {error}') from error
    if not isinstance(content, expect):
        kinds: dict[type, str] = {dict: 'an object', list: 'a list'}
        raise ValueError(
            f'{source} must hold {kinds.get(expect, expect.__name__)}, '
            f'not {kinds.get(type(content), type(content).__name__)}'
        )
    return content
