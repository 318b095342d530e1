"""Union-box features of a pair, with subject and object marked."""

from __future__ import annotations

import torch
from mmdet.registry import MODELS
from torch import Tensor, nn

from ..pooling import average_to
from ..task_modules.geometry import PAIR_GEOMETRY_DIM, pair_geometry, pair_masks


@MODELS.register_module()
class UnionFeatures(nn.Module):
    """Adds the positions of both boxes to the RoI map of their union box.

    Both boxes are drawn as masks, which pass two convolutions, as in Neural Motifs (arXiv
    1711.06640). Group normalisation replaces batch normalisation, so that results do not depend on
    the other images of the batch. Warping a union box to a square map loses its aspect ratio, so
    the numeric geometry of the pair is added too.

    Args:
        channels: Channels of the RoI maps. The relation head sets it.
        mask_channels: Channels between the two convolutions.
        mask_scale: Resolution of the masks relative to the map.
        num_groups: Groups of the normalisation; must divide ``channels`` and ``mask_channels``.

    Raises:
        ValueError: ``num_groups`` does not divide the channels.
    """

    def __init__(
        self, channels: int, mask_channels: int = 128, mask_scale: int = 4, num_groups: int = 16
    ) -> None:
        super().__init__()
        if channels % num_groups or mask_channels % num_groups:
            raise ValueError(
                f'num_groups={num_groups} must divide channels={channels} and '
                f'mask_channels={mask_channels}'
            )
        self.mask_scale = mask_scale
        self.mask_convs = nn.Sequential(
            nn.Conv2d(2, mask_channels, 7, stride=2, padding=3),
            nn.GroupNorm(num_groups, mask_channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(mask_channels, channels, 3, padding=1),
            nn.GroupNorm(num_groups, channels),
        )
        self.geometry = nn.Linear(PAIR_GEOMETRY_DIM, channels)

    def forward(self, union_maps: Tensor, boxes: Tensor, pairs: Tensor) -> Tensor:
        """Add masks and geometry to union maps.

        Args:
            union_maps: (M, channels, S, S), RoI maps of the union boxes.
            boxes: (N, 4 or more) xyxy in pixels.
            pairs: (M, 2) int64.

        Returns:
            (M, channels, S, S).
        """
        size = int(union_maps.shape[-1])  # a constant of the model, for a tracer too
        side = size * self.mask_scale
        masks = pair_masks(boxes, pairs, side) - 0.5
        if torch.onnx.is_in_onnx_export():
            # ONNX Runtime normalises one map or more, but an image may have no pair.
            masks = self.mask_convs(torch.cat([masks, masks.new_zeros(1, 2, side, side)]))[:-1]
        else:
            masks = self.mask_convs(masks)
        masks = average_to(masks, size)
        geometry = self.geometry(pair_geometry(boxes, pairs))
        return (union_maps + masks + geometry[:, :, None, None]).relu()
