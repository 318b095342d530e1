"""A small ShapeScenes data set, generated once for all tests of this folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gclip_mm.datasets.shape_scenes import ShapeScenesParams, generate

SMALL = ShapeScenesParams(num_train=60, num_val=6, seed=3)


@pytest.fixture(scope='session')
def small_root(tmp_path_factory) -> Path:
    return generate(tmp_path_factory.mktemp('data') / 'shape_scenes', SMALL, progress=False)


@pytest.fixture(scope='session')
def train_json(small_root) -> dict:
    return json.loads((small_root / 'annotations/train.json').read_text())
