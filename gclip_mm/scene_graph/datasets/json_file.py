"""Reads JSON files with errors that name the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read_json(path: str | Path, source: str | None = None, expect: type = dict) -> Any:
    """The content of a JSON file.

    Args:
        path: File on disk.
        source: What error messages call it. Defaults to ``path``.
        expect: The type that its top level must have.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not JSON, cut off for example, or its top level is something else.
    """
    source = source or str(path)
    try:
        content = json.loads(Path(path).read_text(encoding='utf-8'))
    except ValueError as error:  # UnicodeDecodeError is one, too
        raise ValueError(f'{source} is not valid JSON: {error}') from error
    if not isinstance(content, expect):
        kinds = {dict: 'an object', list: 'a list'}
        raise ValueError(
            f'{source} must hold {kinds.get(expect, expect.__name__)}, '
            f'not {kinds.get(type(content), type(content).__name__)}'
        )
    return content
