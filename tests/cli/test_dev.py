"""The development tools run on this checkout and print what they promise."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def run(*args):
    command = [sys.executable, *map(str, args)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_tree_size_adds_up_the_folders_of_the_package():
    out = run('tools/dev/tree_size.py')
    rows = re.findall(r'^\| (\**gclip_mm\S*).*\| (\d+) \| (\d+) \|$', out, re.MULTILINE)
    *folders, _, total = ([int(number) for number in row[1:]] for row in rows)
    assert [sum(column) for column in zip(*folders, strict=True)] == total
    assert total[0] == len(list((ROOT / 'gclip_mm').rglob('*.py')))
    assert 'Longest method of GradClipEngine' in out and 'Circles of imports' in out


def test_count_visits_follows_a_step_to_its_record(monkeypatch):
    monkeypatch.setenv('GCLIP_NUMBA', '0')
    monkeypatch.setenv('PYTHONPATH', str(ROOT))
    head, *rows = run('tools/dev/count_visits.py', '--case', 'AGC').splitlines()
    files, visits, calls = map(int, re.findall(r'(\d+) (?:files|visits|calls)', head))
    assert head.startswith('AGC, torch') and files <= visits <= calls
    assert len(rows) == files and sum(int(row.split()[1]) for row in rows) == calls
    assert any('engine.py' in row for row in rows) and not any('<' in row for row in rows)
