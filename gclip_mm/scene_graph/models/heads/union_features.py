"""Features of a pair's union box that tell which part of it is the subject and which the object."""

from __future__ import annotations

from mmdet.registry import MODELS
from torch import Tensor, nn
from torch.nn import functional as F

from ..task_modules.geometry import PAIR_GEOMETRY_DIM, pair_geometry, pair_masks


@MODELS.register_module()
class UnionFeatures(nn.Module):
    """Adds to the RoI map of each union box where in it the two boxes lie.

    Both boxes are drawn as masks and go through two convolutions, as in Neural Motifs (arXiv
    1711.06640); the masks' normalisation works on groups and not on the batch, so that an image's
    result does not depend on the others. A union box is stretched to a square map, which hides
    its shape, so the geometry of the pair as numbers is added too.

    Args:
        channels: Channels of the RoI maps. The head fills it in.
        mask_channels: Channels between the two convolutions.
        mask_scale: The masks have this many cells for each cell of the map.
        num_groups: Groups of the normalisation; must divide ``channels`` and ``mask_channels``.

    Raises:
        ValueError: ``num_groups`` that does not divide the channels.
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
        """Enrich union maps.

        Args:
            union_maps: (M, channels, S, S), RoI maps of the union boxes.
            boxes: (N, 4 or more) xyxy in pixels.
            pairs: (M, 2) int64.

        Returns:
            (M, channels, S, S).
        """
        size = union_maps.shape[-1]
        masks = self.mask_convs(pair_masks(boxes, pairs, size * self.mask_scale) - 0.5)
        masks = F.adaptive_avg_pool2d(masks, union_maps.shape[-2:])
        geometry = self.geometry(pair_geometry(boxes, pairs))
        return (union_maps + masks + geometry[:, :, None, None]).relu()
