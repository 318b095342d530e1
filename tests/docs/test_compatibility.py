"""The tables of docs/compatibility.md are those of the recorded runs."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tools.dev import compatibility

SUITE = """
import pytest

def test_passes():
    pass

def test_fails():
    assert False

@pytest.mark.skip(reason='needs a GPU')
@pytest.mark.parametrize('number', [1, 2])
def test_skips(number):
    pass

@pytest.fixture
def broken():
    raise OSError

def test_errs(broken):
    pass

def test_lacks():
    pytest.importorskip('a_package_that_is_not_there')

@pytest.mark.xfail(reason='known')
def test_is_expected_to_fail():
    assert False
"""


@pytest.fixture(scope='module')
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp('suite')
    (folder / 'test_suite.py').write_text(SUITE)
    command = [sys.executable, '-m', 'pytest', '-q', '-p', 'no:cacheprovider', '-p', 'no:xdist']
    subprocess.run(
        [*command, '--junitxml=report.xml', 'test_suite.py'],
        cwd=folder,
        check=False,
        capture_output=True,
    )
    return folder / 'report.xml'


def test_report_is_counted(report):
    assert compatibility.read_reports([report]) == {
        'passed': 1,
        'skipped': 4,
        'failed': 2,
        'reasons': {
            'needs a GPU': 2,
            'a_package_that_is_not_there is not installed': 1,
            'known': 1,
        },
    }


def test_reports_of_several_folders_add_up(report):
    both = compatibility.read_reports([report, report])
    assert (both['passed'], both['skipped'], both['failed']) == (2, 8, 4)


def test_a_run_replaces_its_earlier_record_and_the_tables(report, tmp_path, monkeypatch):
    page = tmp_path / 'page.md'
    page.write_text(
        '# Page\n\n| PyTorch | Python |\n| old |\n\nText.\n\n| skipped because |\n\nEnd.\n'
    )
    monkeypatch.setattr(compatibility, 'PAGE', page)
    monkeypatch.setattr(compatibility, 'RECORDS', tmp_path / 'records.json')
    for tests in ('tests/clipping', 'tests'):
        compatibility.main([str(report), '--tests', tests])
    (record,) = json.loads((tmp_path / 'records.json').read_text())
    assert record['tests'] == 'tests'
    text = page.read_text()
    assert '| tests | 1 | 4 | 2 |' in text
    assert '| needs a GPU | 2 |' in text
    assert 'old' not in text
    assert text.startswith('# Page\n\n|')
    assert '\n\nText.\n\n|' in text
    assert text.endswith('\n\nEnd.\n')


def test_rows_are_in_the_order_of_releases():
    run = {
        'numpy': '2',
        'mmengine': '1',
        'mmcv': '1',
        'mmdet': '1',
        'tests': 'tests',
        'python': '3.11',
    }
    run |= {'passed': 1, 'skipped': 0, 'failed': 0, 'reasons': {}}
    records = [{**run, 'torch': release} for release in ('2.13.0', '2.4.1', '2.14.1')]
    ordered = [record['torch'] for record in sorted(records, key=compatibility.key)]
    assert ordered == ['2.4.1', '2.13.0', '2.14.1']


def test_page_shows_the_records():
    page = compatibility.PAGE.read_text()
    records = json.loads(compatibility.RECORDS.read_text())
    assert compatibility.with_tables(page, records) == page
