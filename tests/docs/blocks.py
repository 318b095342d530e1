"""The code blocks of the Markdown pages, and how each kind is checked.

- ``python``: a config is built, other code is executed, the blocks of a page in turn. A block is
  only parsed if it imports a package that is not installed, or follows a comment
  ``<!-- parse only: REASON -->``.
- ``bash``, ``sh``: each command exists, and its parser accepts the line.
- ``json``, ``yaml``: parsed. ``text``: not code.
"""

from __future__ import annotations

import argparse
import ast
import importlib.util
import json
import re
import shlex
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from markdown_it import MarkdownIt
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import HOOKS, LOG_PROCESSORS
from torch import nn

from gclip_mm.cli import COMMANDS
from gclip_mm.cli.convert import CONVERTERS
from gclip_mm.clipping import parse_clip_grad
from gclip_mm.engine.apply_clip import read_recipe
from gclip_mm.engine.configs import find_config

ROOT = Path(__file__).resolve().parents[2]
PARSE_ONLY = re.compile(r'<!-- parse only: \S.* -->')
#: A block that assigns one of these names is a config.
CONFIG_KEYS = {
    '_base_',
    'clip_grad',
    'custom_hooks',
    'custom_imports',
    'default_hooks',
    'log_processor',
    'optim_wrapper',
    'strategy',
}
SHELLS = ('bash', 'sh')
#: Programs whose arguments are not checked.
OTHER_PROGRAMS = {'cd', 'git', 'ln', 'mkdir', 'pip', 'pre-commit', 'export', 'source'}


class Block(NamedTuple):
    """A code block.

    Attributes:
        page: the file.
        line: number of the first line of the block.
        language: the word behind the fence; empty for an indented block.
        text: content of the block.
        parse_only: whether the page says that the block cannot be executed.
    """

    page: Path
    line: int
    language: str
    text: str
    parse_only: bool

    def __str__(self) -> str:
        return f'{self.page.relative_to(ROOT)}:{self.line}'

    def tree(self) -> ast.Module:
        """The syntax tree of a Python block; its line numbers are those of the page."""
        return ast.increment_lineno(ast.parse(self.text, str(self.page)), self.line - 1)


def pages() -> list[Path]:
    """The pages whose blocks are checked: those of the documentation, and those in the root."""
    found = [*ROOT.glob('*.md'), *(ROOT / 'docs').rglob('*.md')]
    return sorted(path for path in found if '_build' not in path.parts)


def blocks(page: Path) -> list[Block]:
    """The code blocks of a page; directives such as ``{toctree}`` are none."""
    found, comment = [], ''
    for token in MarkdownIt('commonmark').parse(page.read_text()):
        if token.type in ('fence', 'code_block') and not token.info.startswith('{'):
            first = token.map[0] + 1 + (token.type == 'fence')
            only = PARSE_ONLY.fullmatch(comment) is not None
            found.append(Block(page, first, token.info.strip(), token.content, only))
        if token.nesting == 0:
            comment = token.content.strip() if token.type == 'html_block' else ''
    return found


# -- Python ----------------------------------------------------------------------------------------


class Detector(nn.Module):
    """A model with the names that the configs of the pages match."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential()
        self.backbone.conv1 = nn.Conv2d(3, 4, 3)
        self.backbone.bn1 = nn.BatchNorm2d(4)
        self.roi_head = nn.ModuleDict(dict(fc_cls=nn.Linear(4, 2)))


def is_installed(package: str) -> bool:
    """Whether a package can be imported."""
    return importlib.util.find_spec(package) is not None


def missing_packages(tree: ast.Module) -> list[str]:
    """The packages that the code imports and that are not installed."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.split('.')[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(node.module.split('.')[0])
    return sorted(name for name in names if not is_installed(name))


def is_config(tree: ast.Module) -> bool:
    """Whether the code is a config: nothing but assignments, one of them to a key of MMEngine."""
    if not all(isinstance(node, ast.Assign) for node in tree.body):
        return False
    names = {target.id for node in tree.body for target in node.targets
             if isinstance(target, ast.Name)}  # fmt: skip
    return bool(names & CONFIG_KEYS)


def check_config(block: Block, folder: Path) -> None:
    """Load the config, and build what clips from it: optimizer wrapper, hooks, log processor."""
    file = folder / f'line_{block.line}.py'
    file.write_text(block.text)
    cfg = Config.fromfile(str(file), import_custom_modules=False)

    if cfg.get('clip_grad') is not None:
        bind(dict(type='GClipOptimWrapper', optimizer=dict(type='SGD', lr=0.1),
                  clip_grad=cfg.clip_grad))  # fmt: skip
    wrapper = cfg.get('optim_wrapper')
    if wrapper is not None and wrapper.get('optimizer') is None:
        parse_clip_grad(wrapper.clip_grad)
    elif wrapper is not None:
        bind(wrapper)
    for hook in [*cfg.get('custom_hooks', ()), *cfg.get('default_hooks', {}).values()]:
        if hook['type'].startswith('GClip'):
            HOOKS.build(hook)
    if cfg.get('log_processor') is not None:
        LOG_PROCESSORS.build({'type': 'LogProcessor', **cfg.log_processor})


def bind(wrapper: dict[str, Any]) -> None:
    """Build an optimizer wrapper on :class:`Detector`, and match its routes."""
    model = Detector()
    built = build_optim_wrapper(model, Config(dict(w=wrapper)).w)
    if getattr(built, 'engine', None) is not None:
        built.engine.bind(model)


def run_page(page_blocks: list[Block], folder: Path) -> dict[str, Any]:
    """Check the Python blocks of a page in turn; returns the names that they define."""
    names: dict[str, Any] = dict(__name__='page')
    for block in page_blocks:
        if block.language != 'python':
            continue
        tree = block.tree()
        if block.parse_only or missing_packages(tree):
            continue
        try:
            if is_config(tree):
                check_config(block, folder)
            else:
                exec(compile(tree, str(block.page), 'exec'), names)
        except Exception as error:
            raise AssertionError(f'the block at {block} fails: {error!r}') from error
    return names


# -- Bash ------------------------------------------------------------------------------------------


def commands(block: Block) -> list[str]:
    """The command lines of a bash block, without comments; continued lines are joined."""
    lines = block.text.replace('\\\n', ' ').splitlines()
    return [' '.join(line.split()) for line in lines if line.strip() and line.lstrip()[0] != '#']


def check_command(line: str) -> None:
    """Assert that a command line names a program that exists, and arguments that it accepts."""
    for part in re.split(r' (?:&&|\|) ', line):
        words = shlex.split(part, comments=True)
        while words and re.fullmatch(r'[A-Z_]+=.*', words[0]):
            words.pop(0)
        if words:
            PROGRAMS.get(words[0], unknown_program)(words)


def unknown_program(words: list[str]) -> None:
    assert words[0] in OTHER_PROGRAMS, f'no check for {words[0]!r}'


def check_make(words: list[str]) -> None:
    targets = re.findall(r'^([\w-]+):', (ROOT / 'Makefile').read_text(), re.M)
    for word in words[1:]:
        assert '=' in word or word in targets, f'no target {word!r}'


def check_python(words: list[str]) -> None:
    if words[1] == '-m':
        module, rest = words[2], words[3:]
        if module == 'gclip_mm.cli':
            check_gclip(['gclip', *rest])
        assert is_installed(module.split('.')[0]), module
        if module == 'pytest':
            assert all((ROOT / word.split('::')[0]).exists() for word in rest if '/' in word)
        elif module.startswith(('gclip_mm', 'tests')):
            path = ROOT / module.replace('.', '/')
            assert path.with_suffix('.py').is_file() or (path / '__main__.py').is_file(), module
        return
    script = ROOT / words[1]
    if not script.exists():
        assert '/' not in words[1], f'{words[1]} does not exist'  # a file of the reader's
        return
    door = re.search(r"import_module\('([\w.]+)'\)\.main\(prog=", script.read_text())
    if door:
        check_arguments(door[1], words[2:])


def check_gclip(words: list[str]) -> None:
    if words[1:] in (['--help'], ['--version']):
        return
    name, rest = words[1], words[2:]
    assert name in COMMANDS, name
    module = f'gclip_mm.cli.{name.replace("-", "_")}'
    if name == 'convert' and rest[0] != '--help':
        assert rest[0] in CONVERTERS, rest[0]
        module, rest = f'{module}.{rest[0]}', rest[1:]
    if rest[:1] == ['--help'] or rest[:1] == ['COMMAND']:
        return
    check_arguments(module, rest)


def check_shell(words: list[str]) -> None:
    """``bash tools/dist_train.sh CONFIG GPUS [flags of train]``, and the like."""
    assert (ROOT / words[1]).is_file(), words[1]
    flags = next((i for i, word in enumerate(words) if word.startswith('--')), len(words))
    command = 'test' if 'test' in Path(words[1]).name else 'train'
    check_arguments(f'gclip_mm.cli.{command}', ['CONFIG'] + ['CHECKPOINT'] * (command == 'test')
                    + words[flags:])  # fmt: skip


def check_torchrun(words: list[str]) -> None:
    check_python(['python', *words[words.index('-m') :]])


def check_arguments(module: str, words: list[str]) -> None:
    """Parse the arguments of a sub-command, and look up the configs and recipes in them."""
    # What a page pipes into a file is not an argument.
    words = words[: words.index('>')] if '>' in words else words
    parser: argparse.ArgumentParser = import_module(module).build_parser()
    try:
        args = parser.parse_args(words)
    except SystemExit as error:
        raise AssertionError(f'{parser.prog} does not accept {words}') from error
    for word in words:
        package = word.partition('::')[0]
        if word.startswith('configs/') or ('::' in word and is_installed(package)):
            assert find_config(word)
    clip = getattr(args, 'clip', None) or []
    for recipe in [clip] if isinstance(clip, str) else clip:
        if recipe not in ('none', 'RECIPE'):
            parse_clip_grad(read_recipe(recipe.partition(': ')[2] or recipe))


PROGRAMS: dict[str, Callable[[list[str]], None]] = {
    'bash': check_shell,
    'gclip': check_gclip,
    'make': check_make,
    'python': check_python,
    'torchrun': check_torchrun,
}

DATA: dict[str, Callable[[str], Any]] = {'json': json.loads, 'yaml': yaml.safe_load}
