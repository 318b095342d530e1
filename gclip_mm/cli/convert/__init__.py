"""``gclip convert``: one module for each format."""

from __future__ import annotations

import sys

from .. import build_parser, dispatch

#: Name of each converter and one line of help; the module has the same name.
CONVERTERS = {
    'table': 'your own photos and a spreadsheet of relations to scene-graph JSON',
    'vg150': 'Visual Genome VG150 to scene-graph JSON',
    'psg': 'PSG to scene-graph JSON',
    'openimages': 'Open Images visual relationships to scene-graph JSON',
    'vrd': 'VRD, Visual Relationship Detection, to scene-graph JSON',
    'visual_genome': "Visual Genome's relationships.json, with a vocabulary of your choice",
    'reltr': "RelTR's COCO files and rel.json to scene-graph JSON",
    'proposals': 'images of a config to the proposal files of R-CNN and Fast R-CNN',
}
EXAMPLE = 'example:\n  gclip convert psg --psg psg.json --out data/psg'


def main(argv: list[str] | None = None, prog: str = 'gclip convert') -> int:
    """Run a converter; see :func:`gclip_mm.cli.main`."""
    parser = build_parser(prog, CONVERTERS, EXAMPLE)
    return dispatch(parser, CONVERTERS, __name__, sys.argv[1:] if argv is None else argv)
