"""The tests of the kernels that decide on a GPU."""

import pytest
import torch

if not torch.cuda.is_available():
    pytest.skip('needs a CUDA GPU', allow_module_level=True)

from tests.clipping.kernels.decision_checks import *  # noqa: F403
