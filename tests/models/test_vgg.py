"""VGG and its narrow variants."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from gclip_mm.models import VGG, SlimSSDVGG


def convs(module):
    return [m for m in module.modules() if isinstance(m, nn.Conv2d)]


@pytest.mark.parametrize(('depth', 'layers'), [(11, 8), (16, 13)])
def test_number_of_convolutions_is_depth_minus_3(depth, layers):
    """The paper's depth includes three fully connected layers."""
    assert len(convs(VGG(depth, width=0.125))) == layers == depth - 3


def test_full_width_has_channels_of_paper():
    widths = [conv.out_channels for conv in convs(VGG(16))]
    assert widths == [64] * 2 + [128] * 2 + [256] * 3 + [512] * 6


def test_full_vgg16_has_published_parameter_count():
    """The convolutions of the published model have 14,714,688 parameters."""
    assert sum(p.numel() for p in VGG(16).parameters()) == 14_714_688


def test_narrow_vgg_returns_tuple_of_one_map():
    model = VGG(11, width=0.25, with_bn=True, bn_eval=False)
    model.init_weights()
    (features,) = model(torch.randn(2, 3, 64, 64))
    assert features.shape == (2, 128, 2, 2)
    features.sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_stride_is_16_without_last_pool():
    assert VGG(11, width=0.1, with_last_pool=False)(torch.randn(1, 3, 64, 64))[0].shape[2:] == (
        4,
        4,
    )


def test_slim_ssd_vgg_scales_channels():
    model = SlimSSDVGG(
        width=0.0625, depth=16, ceil_mode=True, out_indices=(3, 4), out_feature_indices=(22, 34)
    )
    shapes = [tuple(out.shape) for out in model(torch.randn(1, 3, 300, 300))]
    assert shapes == [(1, 32, 38, 38), (1, 64, 19, 19)]


@pytest.mark.parametrize('width', [0, -1])
def test_width_not_above_zero_raises(width):
    with pytest.raises(ValueError, match='width must be above 0'):
        VGG(11, width=width)
