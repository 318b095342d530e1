"""Head that predicts the scene class from the image and its objects."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from mmdet.models.losses import accuracy
from mmdet.registry import MODELS
from mmengine.model import BaseModule
from torch import Tensor, nn

from ..contexts.sequences import image_index


@MODELS.register_module()
class SceneHead(BaseModule):
    """Computes scene logits from pooled feature maps and pooled labels and context of the objects.

    Args:
        num_scenes: Scene classes.
        in_channels: Channels of each feature map.
        in_levels: Levels of the neck's output to pool.
        hidden_dim: Width of the hidden layer.
        dropout: Dropout before the last layer.
        loss_scene: Loss of the logits.
        obj_ctx_dim: Columns of the relation head's ``obj_ctx``. The detector sets it.

    Example:
        >>> model = dict(scene_head=dict(
        ...     type='SceneHead', num_scenes=6, in_channels=256, in_levels=(0, 3)))
    """

    def __init__(
        self,
        num_scenes: int,
        in_channels: int,
        obj_ctx_dim: int,
        in_levels: Sequence[int] = (-1,),
        hidden_dim: int = 256,
        dropout: float = 0.0,
        loss_scene: dict | None = None,
        init_cfg: dict | list | None = None,
    ) -> None:
        super().__init__(init_cfg)
        self.num_scenes = num_scenes
        self.obj_ctx_dim = obj_ctx_dim
        self.in_levels = tuple(in_levels)
        in_dim = in_channels * len(self.in_levels) + 2 * obj_ctx_dim
        self.fc = nn.Sequential(
            nn.Linear(in_dim, hidden_dim), nn.ReLU(inplace=True), nn.Dropout(dropout)
        )
        self.fc_scene = nn.Linear(hidden_dim, num_scenes)
        loss_scene = loss_scene or dict(type='CrossEntropyLoss', loss_weight=1.0)
        self.loss_scene = MODELS.build(loss_scene)

    def forward(
        self,
        feats: Sequence[Tensor],
        valid: Sequence[tuple[float, float]],
        obj_ctx: Tensor,
        num_objs: Sequence[int],
    ) -> Tensor:
        """Compute scene logits.

        Args:
            feats: Levels of (B, in_channels, H, W).
            valid: For each image, the share of the maps' height and width that is not padding.
            obj_ctx: (N, obj_ctx_dim).
            num_objs: Number of objects of each image.

        Returns:
            (B, num_scenes).
        """
        pooled = [_pool_valid(feats[level], valid) for level in self.in_levels]
        return self.fc_scene(self.fc(torch.cat([*pooled, *_pool_objects(obj_ctx, num_objs)], 1)))

    def loss(self, logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Compute loss and accuracy.

        Args:
            logits: (B, num_scenes).
            labels: (B,) int64, -1 for an image without a scene label.

        Returns:
            ``loss_scene``; and ``acc_scene`` in percent if an image has a label.
        """
        known = labels >= 0
        avg_factor = max(int(known.sum()), 1)
        losses = {
            'loss_scene': self.loss_scene(logits[known], labels[known], avg_factor=avg_factor)
        }
        if known.any():
            losses['acc_scene'] = accuracy(logits[known], labels[known])
        return losses


def _pool_valid(feat: Tensor, valid: Sequence[tuple[float, float]]) -> Tensor:
    height, width = feat.shape[-2:]
    return torch.stack(
        [
            fmap[:, : max(1, math.ceil(height * h)), : max(1, math.ceil(width * w))].mean((1, 2))
            for fmap, (h, w) in zip(feat, valid, strict=True)
        ]
    )


def _pool_objects(obj_ctx: Tensor, num_objs: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Mean and maximum over the objects of each image; zeros for an image without objects."""
    batch, dim = len(num_objs), obj_ctx.shape[1]
    group = image_index(num_objs, obj_ctx.device)
    count = torch.bincount(group, minlength=batch)
    mean = obj_ctx.new_zeros(batch, dim).index_add(0, group, obj_ctx)
    mean = mean / count.clamp(min=1)[:, None].to(mean.dtype)
    most = obj_ctx.new_zeros(batch, dim).scatter_reduce(
        0, group[:, None].expand(-1, dim), obj_ctx, 'amax', include_self=False
    )
    return mean, most
