"""Context with convolutions over the pairs' maps and a recurrence over the pairs of a subject."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from mmcv.cnn import ConvModule
from mmdet.registry import MODELS
from torch import Tensor, nn

from .base import BaseContext, MapEncoder
from .recurrence import Recurrence, invert
from .sequences import ORDERINGS, count_by, order_objects, sum_by


@MODELS.register_module()
class CRNNContext(BaseContext):
    """Convolutions over the union maps, then a recurrence over each subject's pairs.

    Follows convolutional recurrent networks (Shi et al., arXiv 1507.05717): convolutions turn maps
    into a sequence of vectors, which a recurrence reads. Here a sequence contains the pairs of one
    subject, sorted by partner in ``ordering``. It is at most as long as the number of objects, and
    all subjects run in parallel. The context of an object is computed from the mean output of its
    sequence.

    Args:
        in_dim: Size of an object's feature vector. The relation head sets it.
        union_channels: Channels of the union maps. The relation head sets it.
        hidden_dim: Size of ``obj_ctx`` and ``edge_ctx`` rows, both directions together.
        conv_channels: Channels of the convolutions.
        num_convs: 3x3 convolutions with ReLU.
        norm_cfg: Normalisation of the convolutions. None: no normalisation.
        cell: ``'rnn'``, ``'gru'`` or ``'lstm'``.
        bidirectional: Run in both directions.
        ordering: Order of the partners: ``'left_right'``, ``'confidence'`` or ``'size'``.
        num_layers: Layers of the recurrence.
        dropout: Dropout on the input of the recurrence and between its layers.

    Raises:
        ValueError: An unknown cell or ordering, or an odd ``hidden_dim`` for two directions.

    Example:
        >>> relation_head = dict(context=dict(
        ...     type='CRNNContext', cell='gru', hidden_dim=512, num_convs=2))
    """

    def __init__(
        self,
        in_dim: int,
        union_channels: int,
        hidden_dim: int = 512,
        conv_channels: int = 256,
        num_convs: int = 2,
        norm_cfg: dict | None = None,
        cell: str = 'gru',
        bidirectional: bool = True,
        ordering: str = 'left_right',
        num_layers: int = 1,
        dropout: float = 0.0,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(in_dim, union_channels, hidden_dim, hidden_dim, init_cfg)
        if ordering not in ORDERINGS:
            raise ValueError(f'ordering must be one of {ORDERINGS}, got {ordering!r}')
        if num_convs < 1:
            raise ValueError(f'num_convs must be at least 1, got {num_convs}')
        self.ordering = ordering
        self.dropout = nn.Dropout(dropout)
        self.convs = nn.Sequential(
            *(
                ConvModule(
                    union_channels if i == 0 else conv_channels,
                    conv_channels,
                    3,
                    padding=1,
                    norm_cfg=norm_cfg,
                )
                for i in range(num_convs)
            )
        )
        self.encode_map = MapEncoder(conv_channels, hidden_dim)
        self.encode_obj = nn.Linear(in_dim, hidden_dim)
        self.rnn = Recurrence(cell, 3 * hidden_dim, hidden_dim, num_layers, bidirectional, dropout)
        self.obj_out = nn.Linear(2 * hidden_dim, hidden_dim)

    def forward(
        self,
        obj_feats: Tensor,
        boxes: Tensor,
        num_objs: Sequence[int],
        union_feats: Tensor,
        pairs: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """See :meth:`BaseContext.forward`; both outputs have ``hidden_dim`` columns."""
        objs = self.encode_obj(obj_feats).relu()
        subject, partner = pairs.unbind(1)
        rank = invert(order_objects(boxes, num_objs, self.ordering))
        # Sort by subject, then by the rank of the partner.
        order = torch.argsort(subject * (boxes.shape[0] + 1) + rank[partner])
        rows = torch.cat(
            [self.encode_map(self.convs(union_feats)), objs[subject], objs[partner]], dim=1
        )
        states = self.rnn(self.dropout(rows[order]), subject[order])
        edge_ctx = states[invert(order)]

        total = sum_by(states, subject[order], objs.shape[0])
        count = count_by(subject, objs.shape[0]).clamp(min=1)
        mean = total / count[:, None].to(total.dtype)
        obj_ctx = self.obj_out(torch.cat([objs.to(mean.dtype), mean], dim=1)).relu()
        return obj_ctx, edge_ctx
