"""Adapters: what the scene-graph heads need from a detector of MMDetection."""

from __future__ import annotations

from mmdet.models.detectors import TwoStageDetector
from torch import nn

from .base import DetectorAdapter
from .two_stage import TwoStageAdapter, runs_one_box_head

__all__ = ['DetectorAdapter', 'TwoStageAdapter', 'adapter_of', 'runs_one_box_head']


def adapter_of(detector: nn.Module, own_maps: bool) -> DetectorAdapter:
    """Choose the adapter of a detector.

    Args:
        detector: A detector of MMDetection.
        own_maps: Whether RoI maps come from the RoI extractor of the detector.
    """
    if isinstance(detector, TwoStageDetector) and runs_one_box_head(detector):
        # Panoptic segmentors, for example, have losses beyond those of both stages.
        plain_loss = type(detector).loss is TwoStageDetector.loss
        return TwoStageAdapter(detector, plain_loss, own_maps)
    return DetectorAdapter(detector, own_maps)
