"""Sphinx's settings for the documentation; `make docs` builds it into docs/_build/html."""

from __future__ import annotations

import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE / '_ext')]

from gclip_mm.version import __version__  # noqa: E402

project = 'gclip_mm'
author = 'The gclip_mm authors'
copyright = f'{author}; Apache-2.0'
version = release = __version__

extensions = [
    'myst_parser',
    'sphinx.ext.autodoc',
    'sphinx.ext.napoleon',
    'sphinx.ext.viewcode',
    'sphinx_copybutton',
    'commands',
    'new_pages',
    'repository_links',
]
exclude_patterns = ['_build']

myst_heading_anchors = 3
# Dollar signs and braces of configs are text.
myst_enable_extensions = ['colon_fence']

autodoc_member_order = 'bysource'
autodoc_typehints = 'description'
autodoc_typehints_description_target = 'documented'
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True

# Only code is copied, not the prompt of a session.
copybutton_exclude = '.linenos, .gp, .go'

# Where links to files outside of docs/ lead. On GitHub it is the repository that builds the pages.
repository_url = (
    f'{os.environ.get("GITHUB_SERVER_URL", "https://github.com")}'
    f'/{os.environ.get("GITHUB_REPOSITORY", "gclip-mm/gclip_mm")}'
)

html_theme = 'furo'
html_title = f'gclip_mm {release}'
html_static_path = ['_static']
html_css_files = ['custom.css']
html_theme_options = {
    'source_repository': repository_url,
    'source_branch': 'main',
    'source_directory': 'docs/',
}


def setup(app):
    """On the page of the rules, show the classes, whose arguments are the keys, and no methods."""

    def skip(app, what, name, obj, skip, options):
        if app.env.docname == 'reference/rules' and not isinstance(obj, type):
            return True
        return None

    app.connect('autodoc-skip-member', skip)
