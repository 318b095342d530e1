"""RoI head of R-CNN, which runs a network on every region."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from mmdet.models.roi_heads import StandardRoIHead
from mmdet.registry import MODELS
from torch import Tensor


@MODELS.register_module()
class RegionRoIHead(StandardRoIHead):
    """``StandardRoIHead`` on regions of the image instead of regions of a feature map.

    The detector sets :attr:`region_network`. Assigning, sampling, losses and non-maximum
    suppression are those of ``StandardRoIHead``.

    Args:
        regions_per_pass (int): Regions per forward pass when testing. Selective search finds
            thousands of regions, which do not fit into memory at once. Defaults to 256.
        **kwargs: As for ``StandardRoIHead``, without the mask branch and the shared head.

    Raises:
        ValueError: A mask branch or a shared head is configured, or ``regions_per_pass`` is below
            1.

    Example:
        >>> roi_head = dict(
        ...     type='RegionRoIHead',
        ...     bbox_roi_extractor=dict(type='ImageRegionExtractor', output_size=224),
        ...     bbox_head=dict(type='BBoxHead', with_avg_pool=True, in_channels=2048))
    """

    #: Maps crops (n, 3, h, w) to features (n, C, h', w').
    region_network: Callable[[Tensor], Tensor]

    def __init__(self, *args: Any, regions_per_pass: int = 256, **kwargs: Any) -> None:
        if regions_per_pass < 1:
            raise ValueError(f'regions_per_pass must be at least 1, got {regions_per_pass}')
        super().__init__(*args, **kwargs)
        for unsupported in ('mask_head', 'shared_head'):
            if getattr(self, unsupported, None) is not None:
                raise ValueError(f'RegionRoIHead does not support {unsupported}: remove it')
        self.regions_per_pass = regions_per_pass

    def _bbox_forward(self, x: tuple[Tensor, ...], rois: Tensor) -> dict[str, Tensor]:
        """Classify and refine regions.

        Args:
            x (tuple[Tensor]): One element, the images, float (B, 3, H, W).
            rois (Tensor): Float (n, 5): index of the image, x1, y1, x2, y2 in pixels.

        Returns:
            dict[str, Tensor]: ``cls_score`` (n, classes + 1), ``bbox_pred`` (n, 4 * classes),
            ``bbox_feats`` (n, C, h', w').
        """
        # Separate passes would have separate batch statistics, so training uses one pass.
        size = max(len(rois), 1) if self.training else self.regions_per_pass
        parts = [self._features(x, part) for part in rois.split(size)]
        bbox_feats = torch.cat(parts) if len(parts) > 1 else parts[0]
        cls_score, bbox_pred = self.bbox_head(bbox_feats)
        return dict(cls_score=cls_score, bbox_pred=bbox_pred, bbox_feats=bbox_feats)

    def _features(self, x: tuple[Tensor, ...], rois: Tensor) -> Tensor:
        crops = self.bbox_roi_extractor(x[: self.bbox_roi_extractor.num_inputs], rois)
        return self.region_network(crops)
