"""Context managers that run a detector in eval mode, and on given feature maps."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Run ``module`` in eval mode, then restore the mode of each of its modules.

    In training mode a prediction would update the statistics of batch norm, and the queries of a
    DINO would contain ground truth.
    """
    training = [child for child in module.modules() if child.training]
    module.eval()
    try:
        yield
    finally:
        for child in training:
            child.training = True


@contextmanager
def given_features(detector: Any, x: tuple[Tensor, ...]) -> Iterator[None]:
    """Let ``loss`` and ``predict`` of a detector use feature maps that were computed before.

    Detectors of MMDetection compute their features by ``self.extract_feat``. Both calls of a
    training step, and the relation head, would otherwise repeat backbone and neck.
    """

    def extract_feat(batch_inputs: Tensor) -> tuple[Tensor, ...]:
        return x

    detector.extract_feat = extract_feat  # hides the method of the class
    try:
        yield
    finally:
        del detector.extract_feat
