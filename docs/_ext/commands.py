"""Sphinx extension: the directive ``gclip-commands`` shows the help of every sub-command."""

from __future__ import annotations

import os
from importlib import import_module
from typing import Any

from docutils import nodes
from docutils.parsers.rst import Directive
from sphinx.application import Sphinx

from gclip_mm.cli import COMMANDS
from gclip_mm.cli.convert import CONVERTERS


class GclipCommands(Directive):
    """A section for each sub-command: its help, as the terminal shows it."""

    def run(self) -> list[nodes.Node]:
        os.environ['COLUMNS'] = '88'
        modules = {
            name: f'gclip_mm.cli.{name.replace("-", "_")}' for name in COMMANDS if name != 'convert'
        }
        modules |= {f'convert {name}': f'gclip_mm.cli.convert.{name}' for name in CONVERTERS}
        return [self._section(name, module) for name, module in modules.items()]

    def _section(self, name: str, module: str) -> nodes.section:
        text = import_module(module).build_parser().format_help()
        title = f'gclip {name}'
        section = nodes.section(ids=[nodes.make_id(title)], names=[title])
        block = nodes.literal_block(text, text, language='text')
        section += [nodes.title(title, title), block]
        return section


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the extension."""
    app.add_directive('gclip-commands', GclipCommands)
    return {'parallel_read_safe': True}
