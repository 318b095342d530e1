"""demo/tutorial.ipynb runs from top to bottom and shows what it says; its outputs are small."""

from __future__ import annotations

import math
import os
import shutil
import sys
from pathlib import Path

import pytest

from gclip_mm.analysis.run_files import read_scalars
from gclip_mm.analysis.spikes import read_spikes
from tests.docs.blocks import ROOT

nbformat = pytest.importorskip('nbformat')
nbclient = pytest.importorskip('nbclient')
pytest.importorskip('ipykernel')

NOTEBOOK = ROOT / 'demo' / 'tutorial.ipynb'


def losses(run: Path) -> list[float]:
    return [row['loss'] for row in read_scalars(run).train]


# Two minutes where nothing else runs.
@pytest.mark.timeout(1200)
def test_the_notebook_runs(tmp_path, monkeypatch):
    if shutil.which('gclip', path=str(Path(sys.executable).parent)) is None:
        pytest.skip('the command gclip is not installed')
    # A copy, because the notebook writes into its checkout.
    for folder in ('configs', 'demo'):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    monkeypatch.setenv('PATH', str(Path(sys.executable).parent), prepend=os.pathsep)
    monkeypatch.setenv('PYTHONPATH', str(ROOT), prepend=os.pathsep)
    # Set by a test that ran before, it would keep the notebook from showing its pictures.
    monkeypatch.delenv('MPLBACKEND', raising=False)
    notebook = nbformat.read(tmp_path / 'demo' / NOTEBOOK.name, 4)
    resources = {'metadata': {'path': str(tmp_path / 'demo')}}
    nbclient.NotebookClient(notebook, timeout=900, resources=resources).execute()

    work = tmp_path / 'work_dirs' / 'tutorial'
    assert math.isnan(losses(work / 'none')[-1])
    clipped = losses(work / 'auto')
    assert all(map(math.isfinite, clipped)) and clipped[-1] < clipped[0]
    spikes = [spike for spike in read_spikes(work / 'hunt') if spike.cause == 'nonfinite']
    assert spikes and all('000005.jpg' in str(spike.images) for spike in spikes)
    for row in read_scalars(work / 'half').train:
        if math.isfinite(row['grad_norm']):
            assert math.isclose(row['grad_norm_post'], (row['grad_norm'] + 1) / 2, rel_tol=1e-4)
    pictures = [
        output
        for cell in notebook.cells
        for output in cell.get('outputs', ())
        if 'image/jpeg' in output.get('data', {})
    ]
    assert len(pictures) == 3


def test_the_stored_outputs_are_complete_and_small():
    cells = [c for c in nbformat.read(NOTEBOOK, 4).cells if c.cell_type == 'code']
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert not any(output.output_type == 'error' for output in outputs)
    assert sum('image/jpeg' in output.get('data', {}) for output in outputs) == 3
    assert NOTEBOOK.stat().st_size < 300_000
    text = ''.join(output.get('text', '') for output in outputs)
    assert '/tmp/' not in text and str(Path.home()) not in text
