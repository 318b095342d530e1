"""Check the links of a built site: ``python check_links.py FOLDER`` lists those that are dead.

Checked are links, images, scripts and style sheets without a scheme: the file exists, and so does
the anchor. Addresses of other sites are not visited.
"""

from __future__ import annotations

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    """The links and anchors of an HTML page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors = {''}
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ('href', 'src') and value:
                self.links.append(value)
            elif name in ('id', 'name') and value:
                self.anchors.add(value)


def dead_links(folder: Path) -> list[str]:
    """The dead links of all pages, as ``page: link``."""
    pages = {path.resolve(): Page(path.read_text()) for path in sorted(folder.rglob('*.html'))}
    dead = []
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            known = pages.get(target)
            missing_anchor = known is not None and unquote(parts.fragment) not in known.anchors
            if not target.exists() or missing_anchor:
                dead.append(f'{path.relative_to(folder.resolve())}: {link}')
    return dead


if __name__ == '__main__':
    found = dead_links(Path(sys.argv[1]))
    print('\n'.join(found) or 'all internal links lead somewhere')
    sys.exit(bool(found))
