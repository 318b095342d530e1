"""Sphinx extension: pages of docs/ that the index does not list replace ``NEW_PAGES`` in it.

So a page can be added, or merged, without a line in the index; a line moves it to its section.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

MARK = 'NEW_PAGES'


def unlisted(index: str, folder: Path) -> list[str]:
    """Names of the pages of a folder that are not alone on a line of the index."""
    listed = set(re.findall(r'^([\w-]+)$', index, flags=re.M))
    return sorted(page.stem for page in folder.glob('*.md') if page.stem not in {*listed, 'index'})


def on_source_read(app: Sphinx, docname: str, content: list[str]) -> None:
    """Fill in the mark of the index."""
    if docname == 'index':
        pages = unlisted(content[0], Path(app.srcdir))
        content[0] = re.sub(rf'^{MARK}$', '\n'.join(pages), content[0], flags=re.M)


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the extension."""
    app.connect('source-read', on_source_read)
    return {'parallel_read_safe': True}
