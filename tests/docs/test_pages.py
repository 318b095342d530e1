"""The documentation is correct: code runs, configs build, commands parse, links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
from mmengine.registry import DefaultScope

from gclip_mm.clipping import CLIPPERS
from gclip_mm.clipping.__main__ import table

from .blocks import DATA, ROOT, SHELLS, blocks, check_command, commands, pages, run_page

PAGES = pages()
BLOCKS = {page: blocks(page) for page in PAGES}
COMMANDS = sorted(
    {line for found in BLOCKS.values() for block in found if block.language in SHELLS
     for line in commands(block)}
)  # fmt: skip
#: tests/detectron2/test_page.py runs this one, with a stand-in for Detectron2.
ELSEWHERE = ROOT / 'docs' / 'detectron2.md'
WITH_PYTHON = [
    page
    for page in PAGES
    if page != ELSEWHERE and any(block.language == 'python' for block in BLOCKS[page])
]


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.fixture
def unchanged_registries(monkeypatch):
    """Rules that a page registers, and the scope that a config sets, last for one test only."""
    monkeypatch.setattr(CLIPPERS, '_classes', dict(CLIPPERS._classes))
    monkeypatch.setattr(CLIPPERS, '_aliases', dict(CLIPPERS._aliases))
    with DefaultScope.overwrite_default_scope('mmdet'):
        yield
    plt.close('all')


@pytest.mark.parametrize('page', WITH_PYTHON, ids=name)
def test_python_of_a_page_runs_and_its_configs_build(page, tmp_path, monkeypatch,
                                                     unchanged_registries):  # fmt: skip
    monkeypatch.chdir(tmp_path)
    run_page(BLOCKS[page], tmp_path)


@pytest.mark.parametrize('command', COMMANDS)
def test_a_command_exists_and_its_parser_accepts_it(command):
    check_command(command)


@pytest.mark.parametrize('page', PAGES, ids=name)
def test_every_block_of_a_page_has_a_checked_language(page):
    for block in BLOCKS[page]:
        assert block.language in ('python', 'text', *SHELLS, *DATA), f'{block}: {block.language!r}'
        if block.language in DATA:
            DATA[block.language](block.text)


@pytest.mark.parametrize(
    'text',
    [
        'gclip trian CONFIG',
        'gclip train CONFIG --clipp auto',
        'gclip train CONFIG --clip type=Autoo',
        'gclip train configs/no_such.py',
        'gclip train mmdet::faster_rcnn/no_such.py',
        'python tools/no_such.py',
        'python tools/train.py CONFIG --nope',
        'make no-such-target',
        'bash tools/dist_train.sh CONFIG 8 --nope',
        'frobnicate',
    ],
)
def test_a_wrong_command_is_found(text):
    with pytest.raises(Exception, match='.'):
        check_command(text)


def markdown() -> list[Path]:
    """The pages, and the README of every folder."""
    folders = ('configs', 'results', 'demo', '.github')
    return PAGES + sorted(page for folder in folders for page in (ROOT / folder).rglob('*.md'))


@pytest.mark.parametrize('page', markdown(), ids=name)
def test_relative_links_of_a_page_lead_to_files(page):
    text = re.sub(r'```.*?```|`[^`\n]*`', '', page.read_text(), flags=re.S)
    for target in re.findall(r'\]\(([^)\s]+)\)', text):
        if not re.match(r'\w+:|#', target):
            assert (page.parent / target.partition('#')[0]).exists(), target


@pytest.mark.parametrize('page', PAGES, ids=name)
def test_paths_in_a_page_exist(page):
    """A file that a page names in a code span or a command is there."""
    found = re.findall(
        r'(?<![\w/.])((?:configs|tools|docs|gclip_mm|tests|results|demo)/[\w./-]*\w)',
        page.read_text(),
    )
    for path in set(found) - MADE_UP:
        assert (ROOT / path).exists() or list(ROOT.glob(f'{path}*')), path


#: Paths that a page tells its reader to make, or that are those of another project.
MADE_UP = {
    'docs/_build/html',
    'tools/lazyconfig_train_net.py',
    'tools/plain_train_net.py',
    'tools/train_net.py',
}


def test_the_table_of_rules_is_that_of_the_registry():
    page = (ROOT / 'docs' / 'which_rule.md').read_text()
    for line in table():
        assert line in page, 'run `python -m gclip_mm.clipping`'
