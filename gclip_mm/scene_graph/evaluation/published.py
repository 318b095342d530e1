"""Published tables, and the convention and data that make figures comparable with them."""

from __future__ import annotations

from typing import NamedTuple


class Table(NamedTuple):
    """A published table.

    Attributes:
        convention: Name in :data:`~gclip_mm.scene_graph.evaluation.CONVENTIONS`.
        data: Convention in the metainfo of its data set, which the converters write.
        paper: Short name and arXiv number.
        what: Data set and split.
        protocols: The protocols that it reports.
        metrics: The metrics that it reports, by the names of this package.
        source: Address of the table, or of the code that computes it.
    """

    convention: str
    data: str
    paper: str
    what: str
    protocols: tuple[str, ...]
    metrics: str
    source: str


_ALL = ('predcls', 'sgcls', 'sgdet')
_VG = 'VG150 test'
_GITHUB = 'https://github.com'
_REACT = f'{_GITHUB}/Maelic/SGG-Benchmark/blob'
#: The commit before REACT++, whose release removed the table of REACT.
_BEFORE = f'{_REACT}/8dc42f9/MODEL_ZOO.md'
_AFTER = f'{_REACT}/a664201/docs/MODEL_ZOO.md'

PUBLISHED = (
    Table(
        *('motifs', 'vg150', 'Neural Motifs 1711.06640', _VG, _ALL, 'R@K, ngR@K'),
        source=f'{_GITHUB}/rowanz/neural-motifs/blob/master/lib/evaluation/sg_eval.py',
    ),
    Table(
        *('motifs', 'vg150', 'KERN 1903.03326', _VG, _ALL, 'R@K, mR@K, ngR@K, ngmR@K'),
        source='https://arxiv.org/abs/1903.03326',
    ),
    Table(
        *('vg150', 'vg150', 'TDE 2002.11949', _VG, _ALL, 'R@K, mR@K, zR@K'),
        source=f'{_GITHUB}/KaihuaTang/Scene-Graph-Benchmark.pytorch/blob/master/METRICS.md',
    ),
    Table(
        *('vg150', 'vg150', 'BGNN 2104.00308', _VG, _ALL, 'R@K, mR@K'),
        source='https://arxiv.org/abs/2104.00308',
    ),
    Table(
        *('motifs', 'vg150', 'RelTR 2201.11460', _VG, ('sgdet',), 'R@K, mR@K'),
        source=f'{_GITHUB}/yrcong/RelTR/blob/main/engine.py',
    ),
    Table(
        *('vg150', 'vg150', 'IETrans 2203.11654', _VG, _ALL, 'R@K, mR@K, F1@K'),
        source='https://arxiv.org/abs/2203.11654',
    ),
    Table(
        *('motifs', 'vg150', 'EGTR 2404.02072', _VG, ('sgdet',), 'R@K, mR@K'),
        source=f'{_GITHUB}/naver-ai/egtr/blob/main/evaluate_egtr.py',
    ),
    Table(
        *('sgg_benchmark', 'vg150', 'REACT 2405.16116', _VG, ('sgdet',), 'R@K, mR@K'),
        source=_BEFORE,
    ),
    Table(
        *('sgg_benchmark', 'psg', 'REACT 2405.16116', 'PSG test, matched by boxes', ('sgdet',)),
        metrics='R@K, mR@K',
        source=_BEFORE,
    ),
    Table(
        *('sgg_benchmark', 'vg150', 'REACT++ 2603.06386', _VG, ('sgdet',)),
        metrics='R@K, mR@K, mean of F1@20, F1@50 and F1@100',
        source=_AFTER,
    ),
    Table(
        *('sgg_benchmark', 'psg', 'REACT++ 2603.06386', 'PSG test, matched by boxes', ('sgdet',)),
        metrics='R@K, mR@K, mean of F1@20, F1@50 and F1@100',
        source=_AFTER,
    ),
    Table(
        *('openimages', 'openimages', 'BGNN 2104.00308', 'Open Images V6', ('sgdet',)),
        metrics='mR@50, R@50 (ngR@50), wmAP_rel, wmAP_phr, score_wtd',
        source=f'{_GITHUB}/SHTUPLUS/PySGG/blob/main/MODELZOO.md',
    ),
    Table(
        *('vrd', 'vrd', 'Contrastive Losses 1903.02728', 'VRD test', ('sgdet',)),
        metrics='R@K, phrR@K (k = 1), ngR@K, ngphrR@K (k = 70)',
        source=f'{_GITHUB}/NVIDIA/ContrastiveLosses4VRD/blob/master/lib/datasets_rel/'
        'task_evaluation_vg_and_vrd.py',
    ),
)


def comparable(data: str | None, protocol: str) -> list[Table]:
    """Tables of a data set that report the protocol.

    Args:
        data: Convention in the metainfo of the data set.
        protocol: 'predcls', 'sgcls' or 'sgdet'.
    """
    return [table for table in PUBLISHED if table.data == data and protocol in table.protocols]
