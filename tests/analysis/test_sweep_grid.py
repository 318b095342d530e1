"""Summaries of hand-computed grids of training runs."""

from __future__ import annotations

import csv
import math

import pytest

from gclip_mm.analysis.sweep_grid import (
    DIVERGED,
    FAILED,
    TRAINED,
    Cell,
    Outcome,
    enough,
    format_grid,
    format_summary,
    group,
    pick_metric,
    summarise,
    write_csv,
)


def trained(metric: float) -> Outcome:
    return Outcome(TRAINED, metric=metric, iterations=10)


@pytest.fixture
def results():
    """Two seeds; without clipping the best mean is 0.4, and runs diverge from lr 0.1 on."""
    grid = {
        ('none', 0.01): [trained(0.3), trained(0.5)],
        ('none', 0.1): [trained(0.6), Outcome(DIVERGED, nonfinite_from=7)],
        ('none', 1.0): [Outcome(DIVERGED), Outcome(DIVERGED)],
        ('norm', 0.01): [trained(0.3), trained(0.4)],
        ('norm', 0.1): [trained(0.5), trained(0.7)],
        ('norm', 1.0): [trained(0.33), trained(0.41)],
        ('agc', 0.01): [trained(0.1), trained(0.1)],
        ('agc', 0.1): [trained(0.2), Outcome(FAILED, error='no memory')],
    }
    return {
        Cell(lr, rule, seed): outcome
        for (rule, lr), outcomes in grid.items()
        for seed, outcome in enumerate(outcomes)
    }


def test_diverged_run_counts_as_zero(results):
    found = group(results, 'none', 0.1)
    assert found.metrics == (0.6, 0.0) and found.mean == 0.3
    assert (found.diverged, found.failed) == (1, 0)
    # The sample deviation of (0.6, 0): sqrt(2 * 0.3^2 / 1).
    assert found.spread == pytest.approx(0.3 * math.sqrt(2))
    assert group(results, 'agc', 0.1).failed == 1
    assert math.isnan(group(results, 'agc', 1.0).mean)


def test_summary_matches_hand_computed_grid(results):
    # Without clipping the best mean is 0.4, at 0.01; 0.7 of it is 0.28.
    assert enough(results, 0.7) == pytest.approx(0.28)
    none, norm, agc = summarise(results, ['none', 'norm', 'agc'], [0.01, 0.1, 1.0], 0.7)
    assert (none.best_lr, none.largest_lr, none.ratio) == (0.01, 0.01, 1.0)
    assert norm.best_lr == 0.1 and norm.best_mean == pytest.approx(0.6)
    # At 1.0 the mean is 0.37. At 0.1 the mean of none is 0.3, but one seed diverged.
    assert norm.largest_lr == 1.0 and norm.ratio == pytest.approx(100)
    assert agc.largest_lr is None and math.isnan(agc.ratio)


def test_reference_is_the_best_rule_without_an_unclipped_run(results):
    clipped = {c: o for c, o in results.items() if c.rule != 'none'}
    assert enough(clipped, 0.5) == pytest.approx(0.3)
    norm, *_ = summarise(clipped, ['norm'], [0.01, 0.1, 1.0], 0.5)
    assert norm.largest_lr == 1.0 and math.isnan(norm.ratio)


def test_tables_show_diverged_and_failed_runs(results):
    rules, lrs = ['none', 'norm', 'agc'], [0.01, 0.1, 1.0]
    grid = format_grid(results, rules, lrs).splitlines()
    assert grid[0] == '| rule | lr 0.01 | lr 0.1 | lr 1 |'
    assert grid[2] == '| none | 0.400 | 0.300 (1/2 diverged) | 0.000 (2/2 diverged) |'
    assert grid[4] == '| agc | 0.100 | 0.100 (1/2 failed) |  |'
    summary = format_summary(summarise(results, rules, lrs, 0.7), 0.3).splitlines()
    assert summary[3] == '| norm | 0.600 ± 0.141 | 0.1 | 1 | 100x |'
    assert summary[4].endswith('| none of these |  |')


def test_metric_is_found_with_and_without_prefix():
    metrics = {'coco/bbox_mAP': 0.4, 'coco/bbox_mAP_50': 0.7, 'coco/bbox_mAP_s': -1.0}
    assert pick_metric(metrics, 'bbox_mAP') == pick_metric(metrics, 'coco/bbox_mAP') == 0.4
    assert pick_metric(metrics, 'bbox_mAP_s') == 0.0, "COCO's -1 for nothing to average"
    assert pick_metric({}, 'bbox_mAP') == 0.0, 'nothing detected, nothing reported'
    with pytest.raises(KeyError, match='bbox_mAP_50'):
        pick_metric(metrics, 'mAP')


def test_outcome_survives_a_file(tmp_path):
    outcome = Outcome(DIVERGED, nonfinite_from=3, last_loss=2.5, metrics={'a/b': 1.0})
    outcome.save(tmp_path / 'o.json')
    loaded = Outcome.load(tmp_path / 'o.json')
    assert (loaded.status, loaded.nonfinite_from, loaded.metrics) == (DIVERGED, 3, {'a/b': 1.0})
    assert math.isnan(loaded.metric)
    (tmp_path / 'o.json').write_text('{"status": "tra')
    assert Outcome.load(tmp_path / 'o.json') is None
    assert Outcome.load(tmp_path / 'nowhere.json') is None


def test_csv_holds_every_column(tmp_path):
    cell = Cell(0.1, 'norm', 3, dict(type='NormClip', max_norm=2.0), 'max_norm from the advisor')
    write_csv(tmp_path / 's.csv', [(cell, trained(0.25), 'python x')])
    (row,) = csv.DictReader((tmp_path / 's.csv').open())
    assert (row['rule'], row['lr'], row['seed'], row['metric']) == ('norm', '0.1', '3', '0.2500')
    assert row['clip_grad'] == '{"type": "NormClip", "max_norm": 2.0}'
    assert row['nonfinite_from'] == '' and row['command'] == 'python x'


def test_cell_names_are_unique():
    rules = ('none', 'type=AGC,clip_factor=0.1')
    names = {Cell(lr, r, seed).name for lr in (0.1, 1.0) for r in rules for seed in (0, 1)}
    assert len(names) == 8
    assert all('/' not in name and '=' not in name for name in names)
