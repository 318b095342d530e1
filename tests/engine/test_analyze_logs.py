"""MMDetection's own ``analyze_logs.py`` plots every log key from a run's ``scalars.json``."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import cv2
import pytest

from gclip_mm.clipping import LOG_KEYS

mmdet = pytest.importorskip('mmdet')
TOOL = Path(mmdet.__file__).parent / '.mim' / 'tools' / 'analysis_tools' / 'analyze_logs.py'
LOG = Path(__file__).parents[2] / 'results' / 'bccd' / 'norm.json'


def test_analyze_logs_plots_every_key(tmp_path, monkeypatch):
    # The tool uses seaborn only for a drawing style, so it is not installed for the tests.
    monkeypatch.setitem(sys.modules, 'seaborn', SimpleNamespace(set_style=lambda style: None))
    out = tmp_path / 'curves.png'
    arguments = ['plot_curve', str(LOG), '--keys', *LOG_KEYS, '--out', str(out)]
    monkeypatch.setattr(sys, 'argv', [str(TOOL), *arguments])
    monkeypatch.setenv('MPLBACKEND', 'Agg')
    runpy.run_path(str(TOOL), run_name='__main__')
    assert cv2.imread(str(out)).size > 0
