"""``gclip sg-eval``: every scene-graph metric under every convention, from one test run."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..scene_graph.evaluation import CONVENTIONS, load_triplets, open_images_vrd
from ..scene_graph.evaluation.dump import load_dump
from ..scene_graph.evaluation.metric import Unseen
from ..scene_graph.evaluation.options import check_ks
from ..scene_graph.evaluation.predicate_groups import predicate_groups
from ..scene_graph.evaluation.published import PUBLISHED, comparable
from ..scene_graph.evaluation.recall import scene_graph_recall
from ..scene_graph.evaluation.samples import ground_truth_of, prediction_of
from .arguments import add_json, exit_code, new_parser, only_json

DESCRIPTION = """\
Compute every scene-graph metric under every published convention.

FILE is what `gclip test CONFIG CHECKPOINT --out FILE` wrote: predictions and ground truth. The
metric of the config decides whether there are zero-shot triplets and groups of predicates; the
options below replace them. A line is printed for each published table that the figures may be
compared with: of the same data set, protocol and convention."""

#: Metrics of Open Images that are not recalls.
_AP = ('mAP_rel', 'wmAP_rel', 'mAP_phr', 'wmAP_phr', 'score', 'score_wtd')


def build_parser(prog: str = 'gclip sg-eval') -> argparse.ArgumentParser:
    """The parser."""
    parser = new_parser(
        prog,
        DESCRIPTION,
        'gclip sg-eval work_dirs/predictions.pkl',
        'gclip sg-eval work_dirs/predictions.pkl --convention vg150 motifs --json',
    )
    parser.add_argument('file', type=Path, help='.pkl file of `gclip test --out`')
    parser.add_argument(
        '--convention',
        nargs='+',
        choices=sorted(CONVENTIONS),
        default=list(CONVENTIONS),
        help='conventions to compute (default: all)',
    )
    parser.add_argument(
        '--k', type=int, nargs='+', default=[20, 50, 100], help='values of K (default: 20 50 100)'
    )
    parser.add_argument('--iou-thr', type=float, default=0.5, help='(%(default)s)')
    parser.add_argument(
        '--absent',
        choices=('zero', 'skip'),
        help='predicates without ground truth in mR@K: count as 0, as published, or are left out',
    )
    parser.add_argument('--zero-shot', help='file of zero-shot triplets: .json, .npy or .pytorch')
    parser.add_argument(
        '--groups',
        choices=('thirds', 'bgnn'),
        help='mean recall of head, body and tail: thirds by frequency in training, or the '
        'published groups of VG150',
    )
    add_json(parser)
    return parser


def parse_args(argv: list[str] | None = None, prog: str = 'gclip sg-eval') -> argparse.Namespace:
    """Parse and check the arguments."""
    parser = build_parser(prog)
    args = parser.parse_args(argv)
    try:
        check_ks(args.k, args.iou_thr)
    except ValueError as error:
        parser.error(f'--k and --iou-thr: {error}')
    return args


def evaluate(args: argparse.Namespace) -> dict[str, Any]:
    """All figures, and the tables that they may be compared with.

    Raises:
        ValueError, OSError: a file is missing or not what it should be.
    """
    samples, meta = load_dump(args.file)
    named = [(sample, str(sample.get('img_path') or sample.get('img_id'))) for sample in samples]
    predictions = [prediction_of(sample, name) for sample, name in named]
    truths = [ground_truth_of(sample, name) for sample, name in named]
    predicates = meta['predicates']
    count = len(predicates) or max(p['rel_scores'].shape[-1] for p in predictions)
    zero_shot: Any = meta['zero_shot']
    if args.zero_shot:
        zero_shot = load_triplets(args.zero_shot, meta['classes'], predicates)
    elif meta['seen'] is not None:
        zero_shot = _occurring(truths, Unseen(meta['seen']))
    groups = meta['groups']
    if args.groups:
        groups = predicate_groups(args.groups, predicates, meta['counts'])
    figures = {}
    for name in args.convention:
        options = dict(CONVENTIONS[name])
        if args.absent:
            options['absent'] = args.absent
        figures[name] = scene_graph_recall(
            predictions,
            truths,
            args.k,
            args.iou_thr,
            num_predicates=count,
            zero_shot_triplets=zero_shot,
            predicate_groups=groups,
            **options,
        )
        if name == 'openimages':
            detections = open_images_vrd(predictions, truths, count, args.k, args.iou_thr)
            figures[name].update({key: detections[key] for key in _AP})
    hidden = ('A@', 'ngA@') if meta['protocol'] == 'sgdet' else ('phr', 'ngphr', *_AP)
    for name, values in figures.items():
        figures[name] = {k: v for k, v in values.items() if not k.startswith(hidden)}
    present = {int(p) for truth in truths for p in np.asarray(truth['relations'])[:, 2]}
    tables = [] if args.absent == 'skip' else comparable(meta['convention'], meta['protocol'])
    return dict(
        file=args.file,
        images=len(samples),
        relations=sum(len(truth['relations']) for truth in truths),
        protocol=meta['protocol'],
        convention=meta['convention'],
        predicates=count,
        absent_predicates=[
            predicates[p] if predicates else p for p in range(count) if p not in present
        ],
        figures=figures,
        comparable=[t._asdict() for t in tables if t.convention in args.convention],
    )


def _occurring(truths: Sequence[dict], among: Unseen) -> set[tuple[int, int, int]]:
    """The triplets of the ground truth that are ``among`` these."""
    found: set[tuple[int, int, int]] = set()
    for truth in truths:
        labels, relations = np.asarray(truth['labels']), np.asarray(truth['relations'])
        ends = labels[relations[:, :2].astype(np.int64)].reshape(-1, 2)
        found.update(map(tuple, np.column_stack((ends, relations[:, 2])).tolist()))
    return {triplet for triplet in found if triplet in among}


def text(result: dict[str, Any]) -> str:
    """The figures as a table with a column for each convention, and the lines below it."""
    figures = result['figures']
    names = list(figures)
    rows = list(dict.fromkeys(key for values in figures.values() for key in values))
    width, column = max(map(len, rows)), max(*map(len, names), 7)
    lines = [
        f'{result["images"]} images, {result["relations"]} relations, {result["protocol"]}, data: '
        f'{result["convention"] or "no published convention"}'
    ]
    absent = result['absent_predicates']
    if absent:
        shown = ', '.join(map(str, absent[:5])) + (', ...' if len(absent) > 5 else '')
        lines.append(
            f'{len(absent)} of {result["predicates"]} predicates have no ground truth here '
            f'({shown}); in mR@K they count as 0 unless --absent skip'
        )
    lines += ['', ' '.join([' ' * width, *(f'{name:>{column}}' for name in names)])]
    for row in rows:
        cells = [_cell(figures[name].get(row)) for name in names]
        lines.append(' '.join([f'{row:<{width}}', *(f'{cell:>{column}}' for cell in cells)]))
    lines.append('')
    for table in result['comparable']:
        lines.append(
            f'{table["convention"]}: may be compared with {table["paper"]} ({table["what"]}): '
            f'{table["metrics"]}; {table["source"]}'
        )
    if not result['comparable']:
        known = sorted({table.data for table in PUBLISHED})
        lines.append(
            'no published table: these figures are of other data, protocols or conventions '
            f'(known data: {", ".join(known)})'
        )
    return '\n'.join(lines)


def _cell(value: float | None) -> str:
    if value is None:
        return ''
    return 'nan' if math.isnan(value) else f'{value:.4f}'


def run(args: argparse.Namespace) -> None:
    """Compute and print the figures."""
    with only_json(args.json) as result:
        result.update(evaluate(args))
        print(text(result))


def main(argv: list[str] | None = None, prog: str = 'gclip sg-eval') -> int:
    """Run the command; returns the exit code."""
    args = parse_args(argv, prog)
    return exit_code(lambda: run(args), ValueError, OSError)
