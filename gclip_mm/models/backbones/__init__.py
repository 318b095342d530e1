"""Backbones."""

from .vgg import VGG, SlimSSDVGG

__all__ = ['VGG', 'SlimSSDVGG']
