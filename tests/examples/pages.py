"""The Python code of a page."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parents[2] / 'docs'


def run_page(name: str) -> dict[str, Any]:
    """Run the Python blocks of a page one after another; returns their names."""
    names: dict[str, Any] = {}
    for block in re.findall(r'```python\n(.*?)```', (DOCS / name).read_text(), flags=re.DOTALL):
        exec(compile(block, name, 'exec'), names)
    return names
