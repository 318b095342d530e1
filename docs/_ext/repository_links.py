"""Sphinx extension: relative links of pages to files outside of docs/ lead to the repository.

The pages are read on GitHub too, where such links work as they are.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx
from sphinx.util import logging

LINK = re.compile(r'(?<!!)(\[[^\]]*\]\()(\.\./[^)#\s]+)(#[^)\s]*)?\)')


def rewrite(text: str, page: Path, docs: Path, repository: str) -> tuple[str, list[str]]:
    """The text with the links rewritten, and the targets that do not exist.

    Args:
        text: of the page, in Markdown.
        page: path of the page.
        docs: folder of the documentation, below the root of the checkout.
        repository: address of the repository.
    """
    missing = []

    def replace(match: re.Match[str]) -> str:
        path = (page.parent / match[2]).resolve()
        if path.is_relative_to(docs):
            return match[0]
        if not path.exists():
            missing.append(match[2])
            return match[0]
        kind = 'tree' if path.is_dir() else 'blob'
        target = path.relative_to(docs.parent).as_posix()
        return f'{match[1]}{repository}/{kind}/main/{target}{match[3] or ""})'

    return LINK.sub(replace, text), missing


def on_source_read(app: Sphinx, docname: str, content: list[str]) -> None:
    """Rewrite the links of a page; a target that does not exist is a warning."""
    page = Path(app.env.doc2path(docname))
    if page.suffix != '.md':
        return
    docs = Path(app.srcdir).resolve()
    content[0], missing = rewrite(content[0], page, docs, app.config.repository_url)
    for target in missing:
        logging.getLogger(__name__).warning('link to %s, which does not exist', target,
                                            location=docname)  # fmt: skip


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the extension."""
    app.add_config_value('repository_url', '', 'env', str)
    app.connect('source-read', on_source_read)
    return {'parallel_read_safe': True}
