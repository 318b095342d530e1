"""Every metric against the figures of the public evaluators, recorded in ``evaluators.json``."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from gclip_mm.scene_graph.evaluation import CONVENTIONS, open_images_vrd, scene_graph_recall
from tests.scene_graph.evaluation.random_graphs import (
    ABSENT,
    GROUPS,
    NUM_PREDICATES,
    random_graphs,
    zero_shot,
)

RECORDED = json.loads(Path(__file__).with_name('evaluators.json').read_text())
PAGE = Path(__file__).resolve().parents[3] / 'docs/scene_graph_metrics.md'
CONVENTION_OF = {
    'Scene-Graph-Benchmark': 'vg150',
    'PySGG': 'vg150',
    'PySGG (Open Images)': 'openimages',
    'OpenPSG': 'psg',
    'SGG-Benchmark': 'sgg_benchmark',
    'neural-motifs': 'motifs',
    'RelTR': 'motifs',
    'EGTR': 'motifs',
    'EGTR (Open Images)': 'openimages',
    'ContrastiveLosses4VRD': 'vrd',
}
CASES = [(name, protocol) for name, each in RECORDED['figures'].items() for protocol in each]


def figures_of(evaluator: str, protocol: str) -> dict[str, float]:
    """Our figures under the evaluator's convention and names."""
    graphs = random_graphs(protocol)
    options = dict(CONVENTIONS[CONVENTION_OF[evaluator]])
    if evaluator == 'neural-motifs':
        options['phrase'] = True  # which it reports as a mode of its own
    recall = scene_graph_recall(
        *graphs,
        num_predicates=NUM_PREDICATES,
        zero_shot_triplets=zero_shot(),
        predicate_groups=GROUPS,
        **options,
    )
    if 'Open Images' not in evaluator:
        return recall
    # What this literature calls R@K has two predicates a pair.
    recall.update({key[2:]: value for key, value in recall.items() if key.startswith('ngR@')})
    areas = 'intersection' if evaluator.startswith('EGTR') else True
    detections = open_images_vrd(*graphs, NUM_PREDICATES, ap_plus_one=areas)
    assert detections['R@50'] == pytest.approx(recall['R@50'])
    return {**recall, **detections}


@pytest.mark.parametrize(('evaluator', 'protocol'), CASES)
def test_figures_equal_those_of_the_public_evaluator(evaluator, protocol):
    recorded = RECORDED['figures'][evaluator][protocol]
    ours = figures_of(evaluator, protocol)
    assert len(recorded) >= 4
    for key, value in recorded.items():
        assert ours[key] == pytest.approx(value, abs=1e-6), key


def test_recorded_figures_tell_the_conventions_apart():
    """Images without pairs, the last pixel and absent predicates all matter in the fixtures."""
    graphs = random_graphs('sgdet')
    _, truths = graphs
    present = {p for truth in truths for p in truth['relations'][:, 2].tolist()}
    assert present == set(range(NUM_PREDICATES)) - set(ABSENT)
    seen = {
        name: round(scene_graph_recall(*graphs, num_predicates=NUM_PREDICATES, **o)['mR@50'], 6)
        for name, o in CONVENTIONS.items()
    }
    # R and mR of Open Images are those of VG150.
    assert seen.pop('openimages') == seen['vg150']
    assert len(set(seen.values())) == len(seen)
    skipping = scene_graph_recall(
        *graphs, num_predicates=NUM_PREDICATES, **{**CONVENTIONS['vg150'], 'absent': 'skip'}
    )
    ratio = NUM_PREDICATES / len(present)
    assert skipping['mR@50'] == pytest.approx(seen['vg150'] * ratio, abs=1e-5)


def test_page_has_every_evaluator_and_metric():
    """A row for each recorded metric, with a tick for each evaluator that defines it."""
    text = PAGE.read_text()
    lines = [line.strip('|').split('|') for line in text.splitlines() if line.startswith('| ')]
    tables = [[cell.strip() for cell in line] for line in lines]
    start = next(i for i, row in enumerate(tables) if row[0] == 'metric')
    columns = tables[start][1:]
    assert columns == list(RECORDED['figures'])
    ticks = {}
    for row in tables[start + 1 :]:
        names = re.findall('`([^`]+)`', row[0])
        ticks.update({name: dict(zip(columns, row[1:], strict=False)) for name in names})
        if len(row) != len(columns) + 1:
            break
    defined = {
        (re.sub('@.*', '@K', key), evaluator)
        for evaluator, each in RECORDED['figures'].items()
        for figures in each.values()
        for key in figures
    }
    ticked = {(k, e) for k, row in ticks.items() for e, cell in row.items() if cell == 'yes'}
    assert ticked == {(key.replace('@K', '@K'), evaluator) for key, evaluator in defined}
