"""Checks that a RoI extractor fits the feature maps that it reads."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def check_feature_maps(
    maps: tuple[Tensor, ...], batch_inputs: Tensor, extractor: Any, detector: str
) -> None:
    """Check number, channels and strides of the feature maps that a RoI extractor reads.

    A wrong stride would give features of another part of the image.

    Args:
        maps: (B, C, H, W) for each level.
        batch_inputs: (B, 3, H, W).
        extractor: A RoI extractor with ``num_inputs`` levels.
        detector: Class name of the detector, for the message.

    Raises:
        ValueError: They do not fit. Names the key, and what the maps have.
    """
    shapes = [tuple(level.shape[1:]) for level in maps]
    if len(maps) < extractor.num_inputs:
        raise ValueError(
            f'roi_extractor.featmap_strides has {extractor.num_inputs} levels, but the '
            f'{detector} has {len(maps)} feature maps (C, H, W): {shapes}'
        )
    channels = getattr(extractor, 'out_channels', None)
    strides = getattr(extractor, 'featmap_strides', None) or [None] * extractor.num_inputs
    for level, stride in zip(maps, strides, strict=False):
        if channels is not None and level.shape[1] != channels:
            raise ValueError(
                f'roi_extractor.out_channels={channels}, but the feature maps (C, H, W) of the '
                f'{detector} are {shapes}. A graph_neck, such as ChannelMapper or FPN, changes '
                'their channels'
            )
        for size, pixels in zip(level.shape[2:], batch_inputs.shape[2:], strict=True):
            if stride is not None and abs(pixels / stride - size) >= 1:
                raise ValueError(
                    f'roi_extractor.featmap_strides={list(strides)}, but for inputs of '
                    f'{tuple(batch_inputs.shape[2:])} pixels the {detector} has feature maps '
                    f'(C, H, W) {shapes}'
                )
