"""Crops regions of the image, the input of R-CNN's classifier."""

from __future__ import annotations

from mmdet.models.roi_heads.roi_extractors import BaseRoIExtractor
from mmdet.registry import MODELS
from mmdet.utils import OptMultiConfig
from torch import Tensor
from torch.nn.modules.utils import _pair


@MODELS.register_module()
class ImageRegionExtractor(BaseRoIExtractor):
    """Warp every region of the image to one size, regardless of its aspect ratio.

    The warp is mmcv's RoIAlign on the pixels, which averages when shrinking a region and
    interpolates when enlarging it. Pixels outside the image are 0. In a normalised image that is
    the mean pixel, which the paper uses too.

    Args:
        output_size (int | tuple[int, int]): Height and width of a crop in pixels. Defaults to 224.
        context (int): Margin of the crop, in crop pixels on every side, that shows the
            surroundings of the region (the paper's p). Defaults to 16, as in the paper.
        sampling_ratio (int): Samples per crop pixel in each direction; 0 adapts the number to the
            size of the region. Defaults to 0.
        init_cfg (dict, optional): Unused, since the extractor has no weights.

    Raises:
        ValueError: ``context`` is negative, or leaves no room for the region.

    Source: Girshick et al., "Rich feature hierarchies for accurate object detection and semantic
    segmentation", arXiv 1311.2524, appendix A ("warp").

    Example:
        >>> bbox_roi_extractor = dict(type='ImageRegionExtractor', output_size=224, context=16)
    """

    def __init__(
        self,
        output_size: int | tuple[int, int] = 224,
        context: int = 16,
        sampling_ratio: int = 0,
        init_cfg: OptMultiConfig = None,
    ) -> None:
        self.crop_size = _pair(output_size)
        if context < 0 or 2 * context >= min(self.crop_size):
            raise ValueError(
                f'context must be at least 0 and less than half of output_size={output_size}, '
                f'got {context}'
            )
        super().__init__(
            roi_layer=dict(
                type='RoIAlign', output_size=self.crop_size, sampling_ratio=sampling_ratio
            ),
            out_channels=3,
            featmap_strides=[1],
            init_cfg=init_cfg,
        )
        self.context = context

    def with_context(self, rois: Tensor) -> Tensor:
        """Enlarge regions so that the warped crop has a margin of ``context`` pixels.

        Args:
            rois (Tensor): Float (n, 5): index of the image, x1, y1, x2, y2 in pixels.

        Returns:
            Tensor: Float (n, 5) with unchanged centres.
        """
        if not self.context:
            return rois
        height, width = self.crop_size
        centers = (rois[:, 1:3] + rois[:, 3:5]) / 2
        shares = rois.new_tensor([width - 2 * self.context, height - 2 * self.context])
        half = (rois[:, 3:5] - rois[:, 1:3]) / 2 * rois.new_tensor([width, height]) / shares
        grown = rois.clone()
        grown[:, 1:3], grown[:, 3:5] = centers - half, centers + half
        return grown

    def forward(
        self, feats: tuple[Tensor, ...], rois: Tensor, roi_scale_factor: float | None = None
    ) -> Tensor:
        """Crop the regions.

        Args:
            feats (tuple[Tensor]): One element, the normalised images, float (B, C, H, W).
            rois (Tensor): Float (n, 5): index of the image, x1, y1, x2, y2 in pixels.
            roi_scale_factor (float, optional): Enlarge the regions by this factor first.

        Returns:
            Tensor: Float (n, C, height, width).
        """
        images = feats[0]
        rois = rois.type_as(images)
        if roi_scale_factor is not None:
            rois = self.roi_rescale(rois, roi_scale_factor)
        if not len(rois):
            return images.new_zeros(0, images.shape[1], *self.crop_size)
        return self.roi_layers[0](images, self.with_context(rois))
