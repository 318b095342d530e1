"""``apply_clip`` on every config that the installed MMDetection ships."""

from __future__ import annotations

import logging

import pytest
from mmdet.utils import register_all_modules
from mmengine.logging import MMLogger

from gclip_mm.cli import check as tool

FAMILIES = sorted(path.name for path in tool.ROOT.iterdir() if path.is_dir())


@pytest.fixture(autouse=True)
def quiet():
    register_all_modules()
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel(logging.ERROR)
    yield
    logger.setLevel(level)


@pytest.mark.parametrize('family', FAMILIES)
def test_stock_config_clips_or_reports_why_not(family):
    paths = tool.stock_configs(family)
    assert paths or not list((tool.ROOT / family).glob('**/*.py'))
    for path in paths:
        outcome = tool.check(path, 'type=AGC,clip_factor=0.01')
        # Any other failure raises.
        assert outcome == 'clips' or outcome.startswith(('does not load', 'has no optim_wrapper'))


def test_all_faster_rcnn_configs_clip():
    # The test above would also pass if a change made every config "not load".
    clipped = [tool.check(path, 'norm') == 'clips' for path in tool.stock_configs('faster_rcnn')]
    assert len(clipped) > 30
    assert all(clipped)
