"""ImageRegionExtractor against pixels computed by hand."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmdet.registry import MODELS
from mmdet.utils import register_all_modules
from torch.nn import functional as F

from gclip_mm.models import ImageRegionExtractor


@pytest.fixture
def images():
    return torch.randn(2, 3, 64, 80, generator=torch.Generator().manual_seed(0))


def test_crop_at_original_size_equals_pixels(images):
    extractor = ImageRegionExtractor(output_size=24, context=0)
    crops = extractor((images,), torch.tensor([[1.0, 8, 20, 32, 44]]))
    torch.testing.assert_close(crops[0], images[1, :, 20:44, 8:32])


def test_context_adds_surrounding_pixels(images):
    # A region of 16 pixels in a crop of 24 pixels leaves a margin of 4.
    extractor = ImageRegionExtractor(output_size=24, context=4)
    crops = extractor((images,), torch.tensor([[0.0, 20, 24, 36, 40]]))
    torch.testing.assert_close(crops[0], images[0, :, 20:44, 16:40])


def test_context_of_elongated_region_has_equal_crop_margins(images):
    extractor = ImageRegionExtractor(output_size=(16, 24), context=4)
    # Height 2 is scaled to 8 (x4), width 32 to 16 (x0.5).
    grown = extractor.with_context(torch.tensor([[0.0, 20, 30, 52, 32]]))
    torch.testing.assert_close(grown, torch.tensor([[0.0, 12, 29, 60, 33]]))
    assert extractor((images,), torch.tensor([[0.0, 20, 30, 52, 32]])).shape == (1, 3, 16, 24)


def test_large_region_is_averaged(images):
    extractor = ImageRegionExtractor(output_size=16, context=0)
    crops = extractor((images,), torch.tensor([[0.0, 0, 0, 64, 64]]))
    torch.testing.assert_close(crops[0], F.avg_pool2d(images[0, :, :64, :64], 4))


def test_pixels_outside_image_are_zero(images):
    extractor = ImageRegionExtractor(output_size=24, context=4)
    crops = extractor((images,), torch.tensor([[0.0, 0, 24, 16, 40]]))
    assert not crops[0, :, :, :3].any()
    torch.testing.assert_close(crops[0, :, :, 4:], images[0, :, 20:44, :20])


def test_no_regions_gives_empty_crops(images):
    extractor = ImageRegionExtractor(output_size=24, context=4)
    assert extractor((images,), torch.zeros(0, 5)).shape == (0, 3, 24, 24)


def test_extractor_builds_from_config(images):
    register_all_modules()
    cfg = dict(type='ImageRegionExtractor', output_size=8, context=1)
    extractor = MODELS.build(cfg)
    assert extractor((images,), torch.tensor([[0.0, 0, 0, 9, 9]])).shape == (1, 3, 8, 8)
    assert not list(extractor.parameters())


@pytest.mark.parametrize('context', [-1, 12, 13])
def test_too_large_context_raises(context):
    with pytest.raises(ValueError, match='context must be at least 0 and less than half'):
        ImageRegionExtractor(output_size=24, context=context)


@settings(max_examples=50, deadline=None)
@given(
    x=st.floats(0, 500),
    y=st.floats(0, 500),
    width=st.floats(1, 500),
    height=st.floats(1, 500),
    context=st.integers(0, 40),
)
def test_with_context_adds_exact_margin(x, y, width, height, context):
    """The crop's context, scaled to image pixels, equals the growth of the region."""
    size = 100
    extractor = ImageRegionExtractor(output_size=size, context=context)
    roi = torch.tensor([[0, x, y, x + width, y + height]], dtype=torch.float64)
    grown = extractor.with_context(roi)
    per_pixel = (grown[0, 3:] - grown[0, 1:3]) / size
    torch.testing.assert_close(grown[0, 1:3] + context * per_pixel, roi[0, 1:3])
    torch.testing.assert_close(grown[0, 3:] - context * per_pixel, roi[0, 3:])
