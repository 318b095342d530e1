"""Applies every clipping recipe to every stock config of other OpenMMLab packages.

    make ecosystem                  # downloads the packages, trains with four, writes the page
    python tools/dev/ecosystem.py FOLDER --out docs/ecosystem.md --trained trained.xml

``FOLDER`` holds the packages, installed without their dependencies, so that nothing else of the
environment changes. Each package is read in a process of its own.
"""

from __future__ import annotations

import argparse
import copy
import functools
import json
import logging
import os
import re
import subprocess
import sys
import warnings
from collections import Counter
from importlib.metadata import distributions
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

#: Import name of each package, and the name on PyPI.
PACKAGES = {
    'mmseg': 'mmsegmentation',
    'mmpretrain': 'mmpretrain',
    'mmpose': 'mmpose',
    'mmaction': 'mmaction2',
    'mmdet3d': 'mmdet3d',
    'mmyolo': 'mmyolo',
    'mmrotate': 'mmrotate-dev',
    'mmocr': 'mmocr',
    'mmagic': 'mmagic',
    'mmselfsup': 'mmselfsup',
}
#: What the tests in tests/ecosystem train.
MODELS = {
    'mmseg': 'EncoderDecoder, one optimizer',
    'mmpretrain': 'ImageClassifier, one optimizer',
    'mmpose': 'TopdownPoseEstimator, one optimizer',
    'mmagic': 'LSGAN, an optimizer each for generator and discriminator',
}
#: A column of the page for each of their tests.
TRAINED = {
    'every step is clipped': 'test_every_step_of_20_is_clipped',
    'hook': 'test_doors_give_bit_identical_weights[hook]',
    'flag': 'test_doors_give_bit_identical_weights[flag]',
    'resume: wrapper': 'test_resumed_run_is_bit_identical[wrapper]',
    'resume: hook': 'test_resumed_run_is_bit_identical[hook]',
    'resume: flag': 'test_resumed_run_is_bit_identical[flag]',
}
#: Keys that apply_clip may change; all others have to stay as they are.
CHANGED = ('optim_wrapper', 'custom_hooks', 'custom_imports', 'strategy')


# -- one package, in its own process -------------------------------------------------------------
@functools.cache
def recipes() -> dict[str, dict[str, Any]]:
    """The ``clip_grad`` of each recipe in ``configs/_base_/clip``, by its name."""
    from gclip_mm.engine.apply_clip import RECIPES, read_recipe

    return {path.stem: read_recipe(path.stem) for path in sorted(RECIPES.glob('*.py'))}


def read_package(root: Path) -> list[dict[str, Any]]:
    """A row for each config below ``root``: how it ended, and the recipes that it takes.

    The outcomes are ``takes``, ``refuses``, ``has no optimizer`` and ``does not load``.
    """
    from mmengine.config import Config

    rows = []
    for path in sorted(root.rglob('*.py')):
        row: dict[str, Any] = {'config': path.relative_to(root).as_posix()}
        try:
            cfg = Config.fromfile(str(path))
        except Exception as error:
            row.update(outcome='does not load', why=load_error(error, root))
        else:
            row.update(try_recipes(cfg))
        rows.append(row)
    return rows


def try_recipes(cfg: Any) -> dict[str, Any]:
    """Apply every recipe to a loaded config.

    Raises:
        AssertionError: a recipe changed what it must not, or lost its clipping without an error.
    """
    from gclip_mm import ClipConfigError, apply_clip

    if not parts_of(cfg.get('optim_wrapper') or {}):
        return {'outcome': 'has no optimizer', 'why': 'a part of others, or for testing only'}
    # Copying a whole config takes longer than all else, so that one recipe gets the whole and the
    # others get a config of the keys that may change.
    small = type(cfg)({key: cfg.get(key) for key in (*CHANGED, 'optimizer') if cfg.get(key)})
    taken, why = [], ''
    for name, rule in recipes().items():
        given = small if taken else cfg
        one = copy.deepcopy(given)
        try:
            apply_clip(one, copy.deepcopy(rule))
        except ClipConfigError as error:
            why = why or str(error)
            continue
        check_applied(given, one, rule)
        taken.append(name)
    outcome = 'takes' if len(taken) == len(recipes()) else 'refuses'
    return {'outcome': outcome, 'why': why, 'recipes': taken}


def check_applied(before: Any, after: Any, rule: dict[str, Any]) -> None:
    """Check what a recipe made of a config, key by key."""
    keys = set(before) | set(after)
    for key in keys - set(CHANGED):
        assert before.get(key) == after.get(key), f'{key} was changed'
    if before.get('strategy') != after.get('strategy'):
        return  # the rule went to the training engine, whose setting apply_clip names
    for name, old in parts_of(before.optim_wrapper).items():
        new = parts_of(after.optim_wrapper)[name]
        assert new['clip_grad'] == rule, f'{name}.clip_grad is {new["clip_grad"]}'
        assert str(new['type']).startswith('GClip'), f'{name}.type is {new["type"]}'
        for key in set(old) - {'type', 'clip_grad'}:
            assert old[key] == new[key], f'{name}.{key} was changed'


def parts_of(wrapper: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The wrapper, or the members of an ``OptimWrapperDict`` that have an optimizer."""
    if 'optimizer' in wrapper:
        return {'optim_wrapper': wrapper}
    return {
        f'optim_wrapper.{name}': part
        for name, part in wrapper.items()
        if isinstance(part, dict) and 'optimizer' in part
    }


def load_error(error: Exception, root: Path) -> str:
    """The reason why a config does not load, without the paths of this machine."""
    text = str(error)
    missing = re.search(r"No module named '([\w.]+)'", text)
    if missing:
        return f'needs the module {missing[1].split(".")[0]}, which is not installed'
    if isinstance(error, FileNotFoundError):
        return 'a file that it names is not in the wheel'
    # Below the folder: <package>/.mim/configs.
    first = (text.strip().splitlines() or [''])[0]
    for place in (root.parents[2], Path.cwd()):
        first = first.replace(f'{place}/', '').strip()
    return f'{type(error).__name__}: {first[:100]}'


# -- the page ------------------------------------------------------------------------------------
def page(
    versions: dict[str, str], results: dict[str, list[dict[str, Any]]], trained: list[Path]
) -> str:
    """docs/ecosystem.md."""
    total = Counter(row['outcome'] for rows in results.values() for row in rows)
    usable = total['takes'] + total['refuses']
    text = [
        '# Other OpenMMLab packages',
        '',
        'Written by `make ecosystem`.',
        *training(versions, trained),
        '',
        '## Stock configs under `--clip`',
        '',
        'Every stock config of each package is loaded, and each of '
        f'the {len(recipes())} recipes in `configs/_base_/clip` is applied to a copy of it. A '
        'config takes a recipe if every optimizer wrapper then has the rule of the recipe, and all '
        'its other settings are unchanged.',
        '',
        f'Of {usable} configs that load and have an optimizer, {total["takes"]} take every recipe.',
        '',
        '| package | version | configs | take every recipe | refuse some or all | no optimizer '
        '| do not load |',
        '|---|---|---|---|---|---|---|',
    ]
    for name, rows in results.items():
        count = Counter(row['outcome'] for row in rows)
        text.append(
            f'| {PACKAGES[name]} | {versions[name]} | {len(rows)} | {count["takes"]} '
            f'| {count["refuses"]} | {count["has no optimizer"]} | {count["does not load"]} |'
        )
    text += ['', 'A config without an optimizer is a part of others, or is for testing only.']
    text += ['', '### Refused', '', '| package | configs | recipes that they take | why |']
    text += ['|---|---|---|---|', *reasons(results, 'refuses')]
    text += ['', '### Do not load', '', '| package | configs | why |', '|---|---|---|']
    text += reasons(results, 'does not load')
    return '\n'.join(text) + '\n'


def training(versions: dict[str, str], files: list[Path]) -> list[str]:
    """The section on the trainings; empty without results.

    Args:
        versions: the version of each package, by its import name.
        files: what ``pytest --junitxml`` wrote about tests/ecosystem.
    """
    if not files:
        return []
    found: dict[str, str] = {}
    for file in files:
        for case in ElementTree.parse(file).iter('testcase'):
            name = f'{case.get("classname")}.{case.get("name")}'.strip('.')
            outcome = next((child for child in case if child.tag != 'properties'), None)
            found[name] = 'yes' if outcome is None else outcome.tag
            if outcome is not None and outcome.tag == 'skipped':
                found[name] = f'not run: {(outcome.text or "").split("Skipped: ")[-1]}'
    lines = [
        '',
        '## Trained',
        '',
        'A tiny model of each package trains for 20 steps on drawn data by `gclip train`, with '
        '`NormClip` and SGD, and the rule is given by the wrapper, by the hook or by `--clip`. '
        'Hook and flag: the last weights are bit-identical to those of the wrapper. Resume: so '
        'are those of a run that goes on from the tenth step through that door.',
        '',
        f'| package | version | model | {" | ".join(TRAINED)} |',
        '|---|---|---|' + '---|' * len(TRAINED),
    ]
    for package, model in MODELS.items():
        module = f'tests.ecosystem.test_{package}'
        cells = [
            found.get(f'{module}.TestDoors.{test}', found.get(module, 'not run'))
            for test in TRAINED.values()
        ]
        cells = [' '.join(cell.split()).replace('|', '\\|') for cell in cells]
        lines.append(
            f'| {PACKAGES[package]} | {versions[package]} | {model} | {" | ".join(cells)} |'
        )
    return lines


def reasons(results: dict[str, list[dict[str, Any]]], outcome: str) -> list[str]:
    """A line of a table for each package and reason."""
    lines = []
    for name, rows in results.items():
        groups = Counter(
            (', '.join(row.get('recipes', ())), row['why'])
            for row in rows
            if row['outcome'] == outcome
        )
        for (taken, why), count in groups.most_common():
            why = ' '.join(why.split()).replace('|', '\\|')
            middle = f' {taken or "none"} |' if outcome == 'refuses' else ''
            lines.append(f'| {PACKAGES[name]} | {count} |{middle} {why} |')
    return lines


def read_in_process(folder: Path, package: str) -> list[dict[str, Any]]:
    """:func:`read_package` in a process that sees the packages in ``folder``.

    Raises:
        CalledProcessError: the process failed; its output has been printed.
    """
    path = [str(folder), os.environ.get('PYTHONPATH', '')]
    env = {**os.environ, 'PYTHONPATH': os.pathsep.join(filter(None, path))}
    command = [sys.executable, __file__, str(folder), '--package', package]
    done = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('folder', type=Path, help='where the packages are installed')
    parser.add_argument('--out', type=Path, help='the Markdown page to write')
    parser.add_argument(
        '--trained', type=Path, nargs='*', default=[], help='results of tests/ecosystem (JUnit XML)'
    )
    parser.add_argument('--package', choices=PACKAGES, help='print the rows of one as JSON')
    args = parser.parse_args()
    if args.package:
        warnings.simplefilter('ignore')
        logging.disable(logging.WARNING)
        rows = read_package(args.folder / args.package / '.mim' / 'configs')
        print(json.dumps(rows))
        return
    found = {
        d.metadata['Name'].lower().replace('_', '-'): d.version
        for d in distributions(path=[str(args.folder)])
    }
    versions = {package: found[name] for package, name in PACKAGES.items()}
    results = {}
    for package in PACKAGES:
        results[package] = read_in_process(args.folder, package)
        print(package, dict(Counter(row['outcome'] for row in results[package])), flush=True)
    text = page(versions, results, args.trained)
    if args.out:
        args.out.write_text(text)
    else:
        print(text)


if __name__ == '__main__':
    main()
