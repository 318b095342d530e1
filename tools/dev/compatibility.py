"""Records a run of the test suite, and writes the tables of docs/compatibility.md from the records.

    make test-torch TORCH=2.1.2                  # runs the suite with another PyTorch, and this
    python tools/dev/compatibility.py report.xml --tests tests

``report.xml`` is what ``pytest --junitxml`` wrote, run by the same interpreter: the releases are
those of the packages that are installed here. Several reports, of one folder each, make one record.
Records are in ``results/compatibility.json``; a run replaces the record of the same PyTorch, Python
and family of packages. Without a report, the tables are written from the records.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import sys
import xml.etree.ElementTree as ElementTree
from collections import Counter
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RECORDS = ROOT / 'results' / 'compatibility.json'
PAGE = ROOT / 'docs' / 'compatibility.md'

COLUMNS = {
    'torch': 'PyTorch',
    'python': 'Python',
    'numpy': 'NumPy',
    'mmengine': 'MMEngine',
    'mmcv': 'MMCV',
    'mmdet': 'MMDetection',
    'tests': 'tests',
    'passed': 'passed',
    'skipped': 'skipped',
    'failed': 'failed',
}

#: What a reason says of this machine or this release alone, and what the table says.
SHORTER = [
    (r'^Skipped: ', ''),
    (r'^PyTorch \d+\.\d+ does not have ', 'an older PyTorch lacks '),
    (r"^could not import '(\w+)[\w.]*': .*", r'\1 is not installed'),
    (r'\s+', ' '),
]


def installed(*names: str) -> str:
    """Name and release of the first of these distributions that is installed, or '-'."""
    for name in names:
        try:
            return f'{name} {version(name)}' if name != names[0] else version(name)
        except PackageNotFoundError:
            continue
    return '-'


def read_reports(paths: list[Path]) -> dict[str, Any]:
    """The counts of reports that pytest wrote; skipped tests are counted by their reason."""
    passed = failed = 0
    reasons: Counter[str] = Counter()
    for case in (case for path in paths for case in ElementTree.parse(path).iter('testcase')):
        skipped = case.find('skipped')
        if case.find('failure') is not None or case.find('error') is not None:
            failed += 1
        elif skipped is None:
            passed += 1
        else:
            reasons[shorten(skipped.get('message') or 'expected to fail')] += 1
    if passed + failed == 0:
        raise SystemExit(f'{", ".join(map(str, paths))}: no test ran')
    return {
        'passed': passed,
        'skipped': reasons.total(),
        'failed': failed,
        'reasons': dict(reasons.most_common()),
    }


def shorten(reason: str) -> str:
    """The reason of a skipped test, alike on all machines and releases."""
    for pattern, text in SHORTER:
        reason = re.sub(pattern, text, reason)
    return reason.strip()


def environment() -> dict[str, str]:
    """The releases of what is installed here."""
    return {
        'torch': version('torch').partition('+')[0],
        'python': '.'.join(platform.python_version_tuple()[:2]),
        'numpy': installed('numpy'),
        'mmengine': installed('mmengine', 'onedl-mmengine'),
        'mmcv': installed('mmcv', 'onedl-mmcv'),
        'mmdet': installed('mmdet', 'onedl-mmdetection'),
    }


def key(record: dict[str, Any]) -> tuple[Any, ...]:
    """What a later run replaces, and the order of the rows."""
    release = tuple(int(part) for part in record['torch'].split('.'))
    return release, int(record['python'].split('.')[1]), record['mmengine']


def tables(records: list[dict[str, Any]]) -> dict[str, list[str]]:
    """The lines of both tables, by the start of their first line."""
    runs = ['| ' + ' | '.join(COLUMNS.values()) + ' |', '|---' * len(COLUMNS) + '|']
    for run in records:
        runs.append('| ' + ' | '.join(str(run[column]) for column in COLUMNS) + ' |')

    total: Counter[str] = Counter()
    for run in records:
        total.update(run['reasons'])
    names = []
    for run in records:
        family = ', onedl' if run['mmengine'].startswith('onedl') else ''
        names.append(f'{run["torch"]}, {run["python"]}{family}')
    skips = ['| skipped because | ' + ' | '.join(names) + ' |']
    skips += ['|---' * (1 + len(names)) + '|']
    for reason, _ in total.most_common():
        counts = [str(run['reasons'].get(reason, '')) for run in records]
        text = reason.replace('|', '\\|').replace('<', '&lt;')
        skips.append(f'| {text} | ' + ' | '.join(counts) + ' |')
    return {'| PyTorch | Python |': runs, '| skipped because |': skips}


def with_tables(page: str, records: list[dict[str, Any]]) -> str:
    """The page with its two tables replaced."""
    lines = page.splitlines()
    for first, table in tables(records).items():
        start = next(i for i, line in enumerate(lines) if line.startswith(first))
        end = start
        while end < len(lines) and lines[end].startswith('|'):
            end += 1
        lines[start:end] = table
    return '\n'.join(lines) + '\n'


def main(arguments: list[str] | None = None) -> None:
    """Add a record, if there is a report, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('reports', nargs='*', type=Path, help='written by pytest --junitxml')
    parser.add_argument('--tests', default='tests', help='what pytest was asked to run')
    args = parser.parse_args(arguments)

    records = json.loads(RECORDS.read_text()) if RECORDS.exists() else []
    if args.reports:
        run = {**environment(), 'tests': args.tests, **read_reports(args.reports)}
        records = sorted([r for r in records if key(r) != key(run)] + [run], key=key)
        RECORDS.write_text(json.dumps(records, indent=1) + '\n')
        print(*tables([run])['| PyTorch | Python |'], sep='\n')
        for reason, count in run['reasons'].items():
            print(f'{count:6}  {reason}')
    PAGE.write_text(with_tables(PAGE.read_text(), records))


if __name__ == '__main__':
    sys.exit(main())
