"""Detectors."""

from .rcnn import RCNN

__all__ = ['RCNN']
