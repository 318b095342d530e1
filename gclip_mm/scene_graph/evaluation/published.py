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
    """

    convention: str
    data: str
    paper: str
    what: str
    protocols: tuple[str, ...]
    metrics: str


_ALL = ('predcls', 'sgcls', 'sgdet')
PUBLISHED = (
    Table('motifs', 'vg150', 'Neural Motifs 1711.06640', 'VG150 test', _ALL, 'R@K, ngR@K'),
    Table('motifs', 'vg150', 'KERN 1903.03326', 'VG150 test', _ALL, 'R@K, mR@K, ngR@K, ngmR@K'),
    Table('vg150', 'vg150', 'TDE 2002.11949', 'VG150 test', _ALL, 'R@K, mR@K, zR@K'),
    Table('vg150', 'vg150', 'BGNN 2104.00308', 'VG150 test', _ALL, 'R@K, mR@K'),
    Table('motifs', 'vg150', 'RelTR 2201.11460', 'VG150 test', ('sgdet',), 'R@K, mR@K'),
    Table('vg150', 'vg150', 'IETrans 2203.11654', 'VG150 test', _ALL, 'R@K, mR@K, F1@K'),
    Table('motifs', 'vg150', 'EGTR 2404.02072', 'VG150 test', ('sgdet',), 'R@K, mR@K'),
    Table(
        *('sgg_benchmark', 'vg150', 'REACT++ 2603.06386', 'VG150 test', ('sgdet',)),
        'R@K, mR@K, F1@K',
    ),
    Table(
        *('sgg_benchmark', 'psg', 'REACT 2405.16116', 'PSG test, matched by boxes', ('sgdet',)),
        'R@K, mR@K, F1@K',
    ),
    Table(
        *('openimages', 'openimages', 'BGNN 2104.00308', 'Open Images V4 and V6'),
        ('sgdet',),
        'mR@50, R@50 (ngR@50), wmAP_rel, wmAP_phr, score_wtd',
    ),
    Table(
        *('vrd', 'vrd', 'Contrastive Losses 1903.02728', 'VRD test'),
        ('sgdet',),
        'R@K, phrR@K (k = 1), ngR@K, ngphrR@K (k = 70)',
    ),
)


def comparable(data: str | None, protocol: str) -> list[Table]:
    """Tables of a data set that report the protocol.

    Args:
        data: Convention in the metainfo of the data set.
        protocol: 'predcls', 'sgcls' or 'sgdet'.
    """
    return [table for table in PUBLISHED if table.data == data and protocol in table.protocols]
