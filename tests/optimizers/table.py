"""Print how many optimizers of each package pass the contract, are refused, or differ.

python -m tests.optimizers.table [--verbose] [PACKAGE ...]
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import warnings
from collections.abc import Callable

import torch

from .contract import DOORS, PATTERNS, can_run, check_clip, check_skip, is_blind
from .registry import PACKAGES, Entry, entries

COLUMNS = ('skip: pass', 'skip: differ', 'clip: pass', 'clip: differ', 'refused', 'cannot run')


def judge(entry: Entry, doors: list[str]) -> dict[str, str]:
    """Column -> the first reason for it ('' for a pass), over all doors."""
    reasons = {door: can_run(entry, door) for door in doors}
    doors = [door for door, reason in reasons.items() if not reason]
    if not doors:
        return {'cannot run': reasons['attach']}

    def first(check: Callable[..., str], cases: list[tuple]) -> str:
        for case in cases:
            try:
                found = check(entry, *case)
            except Exception as error:
                found = f'{type(error).__name__}: {error}'
            if found:
                return (
                    found if found.startswith('refused') else f'{"/".join(map(str, case))} {found}'
                )
        return ''

    skip = first(check_skip, [(door, pattern) for door in doors for pattern in PATTERNS])
    clip = first(check_clip, [(door,) for door in doors])
    if clip.startswith('refused'):
        return {'refused': clip}
    verdict = {'skip: differ' if skip else 'skip: pass': skip}
    verdict['clip: differ' if clip else 'clip: pass'] = clip
    if not clip and is_blind(entry):
        verdict['blind'] = ''
    return verdict


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('packages', nargs='*', default=PACKAGES)
    parser.add_argument('--verbose', action='store_true', help='name each that does not pass')
    args = parser.parse_args()
    warnings.simplefilter('ignore')
    torch.set_num_threads(1)
    torch.compiler.set_stance('force_eager')
    doors = [
        door
        for door in DOORS
        if door not in ('wrapper', 'hook') or importlib.util.find_spec('mmengine')
    ]
    print(f'doors: {", ".join(doors)}; {len(PATTERNS)} patterns of skipped steps\n')
    print('| package | optimizers |', ' | '.join(COLUMNS), '| same steps without clipping |')
    print('|---' * (len(COLUMNS) + 3) + '|')
    for package in args.packages:
        if importlib.util.find_spec(package) is None:
            print(f'| {package} | not installed |' + ' |' * (len(COLUMNS) + 1))
            continue
        verdicts = {entry.name: judge(entry, doors) for entry in entries(package)}
        counts = [sum(column in v for v in verdicts.values()) for column in (*COLUMNS, 'blind')]
        version = importlib.metadata.version(package)
        cells = ' | '.join(map(str, counts))
        print(f'| {package} {version} | {len(verdicts)} | {cells} |', flush=True)
        if args.verbose:
            for name, verdict in verdicts.items():
                for column, reason in verdict.items():
                    if reason:
                        print(f'    {name}: {column}: {" ".join(reason.split())[:200]}')


if __name__ == '__main__':
    main()
