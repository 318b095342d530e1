"""The kernels that decide on a GPU: what they do under the interpreter, they do there."""

import pytest
import torch

if not torch.cuda.is_available():
    pytest.skip('needs a CUDA GPU', allow_module_level=True)

from tests.clipping.kernels.decision_checks import *  # noqa: E402, F403
