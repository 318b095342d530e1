"""The benchmark runs, and its figures are of what their columns say."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


TOOL = ROOT / 'tools' / 'benchmark' / 'benchmark_clipping.py'


def run(*args):
    return subprocess.run(
        [sys.executable, str(TOOL), *map(str, args)], capture_output=True, text=True, timeout=240
    )


def test_table_has_all_rows_and_columns(tmp_path):
    out = tmp_path / 'folder' / 'table'
    rules = ['NormClip', 'ValueClip', 'AdaGC', 'GradientStabilizer', 'ParamNormClip']
    peers = ['torch clip_grad_norm_', 'torch clip_grad_value_', 'torch _foreach_norm only']
    size = ['--tensors', 6, '--numel', 70_000, '--rounds', 2, '--threads', 1]
    done = run(*size, '--out', out, '--only', *rules, *peers)
    assert done.returncode == 0, done.stderr
    # torch's profiler writes lines of its own to the error stream.
    assert done.stderr.splitlines()[0] == 'timing 12 steps in turn, 2 rounds ...'
    with out.with_suffix('.csv').open() as file:
        rows = {row['name']: row for row in csv.DictReader(file)}
    saved = json.loads(out.with_suffix('.json').read_text())
    assert [row['name'] for row in saved['rows']] == list(rows)
    assert set(rules) | set(peers) < set(rows)
    about = saved['about']
    assert (about['tensors'], about['weights']) == (6, 420_000)
    assert about['gradients'] == 'random'
    kinds = {(t['what'], t['over'], t['of']): t for t in about['targets']}
    assert kinds['ValueClip', 'torch clip_grad_value_', 'clip alone']['at_most'] == 0.6
    assert kinds['ValueClip', 'torch clip_grad_value_', 'clip+step']['at_most'] is None
    for name, row in rows.items():
        assert float(row['clip_and_step_ms']) > 0, name
        assert name in done.stdout
        if name in rules:
            assert row['host_reads'] == '0'
    assert float(rows['NormClip']['over_our_norm']) == 1
    assert float(rows['step only (fused AdamW)']['clip_alone_ms']) == 0
    # A stock step reads the norm for its log, and holds copies.
    assert rows['MMEngine OptimWrapper norm']['host_reads'] == '1'
    assert float(rows['MMEngine OptimWrapper norm']['peak_extra_percent_of_gradients']) > 5


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        (['--only', 'NoClip'], "unknown 'NoClip'; known: step only"),
        (['--gradients', 'model'], '--gradients model needs a model'),
        (['--gradients', 'none'], 'invalid choice'),
    ],
)
def test_errors(args, message):
    done = run('--tensors', 2, '--rounds', 1, *args)
    assert done.returncode != 0 and message in done.stderr


def test_help_explains_every_column():
    text = run('--help').stdout
    for column in ('clip ms', '/read once', '/stock', '/torch', '/ours', 'reads', 'mem %'):
        assert f'  {column} ' in text
    assert 'kernel_launches' in text and '--gradients' in text
