"""VGG as a backbone, and narrow versions for small runs."""

from __future__ import annotations

from typing import Any

from mmcv.cnn import VGG as MMCVVGG
from mmdet.models.backbones import SSDVGG
from mmdet.registry import MODELS
from mmdet.utils import OptMultiConfig
from mmengine.model import BaseModule
from torch import Tensor, nn


@MODELS.register_module()
class VGG(MMCVVGG, BaseModule):
    """The convolutions of VGG, which mmdet has only with SSD's extra layers.

    Args:
        depth (int): 11, 13, 16 or 19.
        width (float): Multiplier of the paper's 64 to 512 channels. Defaults to 1.
        out_indices (tuple[int]): Stages whose output is returned. Defaults to (4,), the last.
        init_cfg (dict | list, optional): Defaults to Kaiming. With ``width=1``, pretrained weights
            named ``features.N.weight``, such as torchvision's, can be loaded.
        **kwargs: As for ``mmcv.cnn.VGG``: ``with_bn``, ``frozen_stages``, ``with_last_pool``, ...

    Raises:
        ValueError: ``width`` is not above 0.

    Source: Simonyan and Zisserman, arXiv 1409.1556.

    Example:
        >>> backbone = dict(type='VGG', depth=16, init_cfg=dict(
        ...     type='Pretrained', checkpoint='torchvision://vgg16'))
    """

    def __init__(
        self,
        depth: int,
        width: float = 1.0,
        out_indices: tuple[int, ...] = (4,),
        init_cfg: OptMultiConfig = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(depth, out_indices=out_indices, **kwargs)
        _narrow(self.features, width)
        self.init_cfg = init_cfg or [
            dict(type='Kaiming', layer='Conv2d'),
            dict(type='Constant', val=1, layer='BatchNorm2d'),
        ]

    def init_weights(self, pretrained: None = None) -> None:
        """Initialise the weights according to ``init_cfg``."""
        BaseModule.init_weights(self)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Feature maps of the stages in ``out_indices``.

        Args:
            x (Tensor): Normalised images, float (B, 3, H, W).

        Returns:
            tuple[Tensor]: Float (B, C, H', W') each; a tuple even for a single stage.
        """
        outs = super().forward(x)
        return outs if isinstance(outs, tuple) else (outs,)


@MODELS.register_module()
class SlimSSDVGG(SSDVGG):
    """mmdet's SSDVGG with fewer channels, to train from scratch without a GPU.

    Args:
        width (float): Multiplier of the channels; the neck's ``in_channels`` (512 and 1024 at
            width 1) have to be multiplied too. Defaults to 0.25.
        **kwargs: As for ``SSDVGG``.

    Raises:
        ValueError: ``width`` is not above 0.

    Example:
        >>> backbone = dict(type='SlimSSDVGG', width=0.25, depth=16, out_feature_indices=(22, 34))
    """

    def __init__(self, width: float = 0.25, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        _narrow(self.features, width)


def _narrow(features: nn.Sequential, width: float) -> None:
    """Replace the layers by narrower ones; the number of image channels is unchanged."""
    if width <= 0:
        raise ValueError(f'width must be above 0, got {width}')
    if width == 1:
        return
    for i, layer in enumerate(features):
        if isinstance(layer, nn.Conv2d):
            features[i] = nn.Conv2d(
                layer.in_channels if i == 0 else max(1, round(layer.in_channels * width)),
                max(1, round(layer.out_channels * width)),
                layer.kernel_size,  # type: ignore[arg-type]  # torch types its own attributes loosely
                stride=layer.stride,  # type: ignore[arg-type]
                padding=layer.padding,  # type: ignore[arg-type]
                dilation=layer.dilation,  # type: ignore[arg-type]
            )
        elif isinstance(layer, nn.BatchNorm2d):
            features[i] = nn.BatchNorm2d(max(1, round(layer.num_features * width)))
