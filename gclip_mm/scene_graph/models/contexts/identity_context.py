"""No context: the baseline for the other contexts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from mmdet.registry import MODELS
from torch import Tensor

from .base import BaseContext


@MODELS.register_module()
class IdentityContext(BaseContext):
    """Returns the features of the objects, and for each pair those of its two objects.

    Has no parameters and is equivariant to the order of the objects.

    Args:
        in_dim: Size of an object's feature vector. The relation head sets it.
        union_channels: Channels of the union maps. The relation head sets it.

    Example:
        >>> relation_head = dict(context=dict(type='IdentityContext'))
    """

    def __init__(self, in_dim: int, union_channels: int, init_cfg: dict | None = None) -> None:
        super().__init__(in_dim, union_channels, in_dim, 2 * in_dim, init_cfg)

    def forward(
        self,
        obj_feats: Tensor,
        boxes: Tensor,
        num_objs: Sequence[int],
        union_feats: Tensor,
        pairs: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """See :meth:`BaseContext.forward`; ``edge_ctx`` is (M, 2 * in_dim)."""
        return obj_feats, torch.cat([obj_feats[pairs[:, 0]], obj_feats[pairs[:, 1]]], dim=1)
