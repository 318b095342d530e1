"""One thread per process: the suite runs in several processes that share the cores."""

import os
import sys
from pathlib import Path

os.environ.setdefault('OMP_NUM_THREADS', '1')
os.environ.setdefault('MPLBACKEND', 'Agg')

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from gclip_mm.compat import TORCH
from tests.older_torch import FEATURES, lacking

torch.set_num_threads(1)

if any(feature.since > TORCH for feature in FEATURES):

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_setup(item):
        yield from _skip_what_is_lacking()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(item):
        yield from _skip_what_is_lacking()

    def _skip_what_is_lacking():
        try:
            return (yield)
        except Exception as error:
            reason = lacking(error)
            if reason is None:
                raise
            pytest.skip(reason)
