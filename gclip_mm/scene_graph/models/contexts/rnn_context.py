"""Context by recurrent networks over the sequence of objects."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from mmdet.registry import MODELS
from torch import Tensor, nn

from .base import BaseContext, PairComposer
from .recurrence import Recurrence, invert
from .sequences import ORDERINGS, image_index, order_objects


@MODELS.register_module()
class RNNContext(BaseContext):
    """Two recurrences over the objects of an image: one for labels, one for relations.

    The second reads the features and the output of the first, as in Neural Motifs (Zellers et al.,
    arXiv 1711.06640), which uses bidirectional LSTMs and orders objects from left to right.

    Args:
        in_dim: Size of an object's feature vector. The relation head sets it.
        union_channels: Channels of the union maps. The relation head sets it.
        hidden_dim: Size of ``obj_ctx`` and ``edge_ctx`` rows, both directions together.
        cell: ``'rnn'``, ``'gru'`` or ``'lstm'``.
        bidirectional: Run in both directions.
        ordering: ``'left_right'``, ``'confidence'`` or ``'size'``; see
            :func:`~gclip_mm.scene_graph.models.contexts.sequences.order_objects`.
        num_layers: Layers of the object recurrence.
        num_edge_layers: Layers of the relation recurrence.
        dropout: Dropout on the input of the recurrences and between their layers.

    Raises:
        ValueError: An unknown cell or ordering, or an odd ``hidden_dim`` for two directions.

    Example:
        >>> relation_head = dict(context=dict(
        ...     type='RNNContext', cell='lstm', hidden_dim=512, ordering='left_right'))
    """

    def __init__(
        self,
        in_dim: int,
        union_channels: int,
        hidden_dim: int = 512,
        cell: str = 'lstm',
        bidirectional: bool = True,
        ordering: str = 'left_right',
        num_layers: int = 1,
        num_edge_layers: int = 1,
        dropout: float = 0.0,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(in_dim, union_channels, hidden_dim, hidden_dim, init_cfg)
        if ordering not in ORDERINGS:
            raise ValueError(f'ordering must be one of {ORDERINGS}, got {ordering!r}')
        self.ordering = ordering
        self.dropout = nn.Dropout(dropout)
        self.obj_rnn = Recurrence(cell, in_dim, hidden_dim, num_layers, bidirectional, dropout)
        self.edge_rnn = Recurrence(
            cell, in_dim + hidden_dim, hidden_dim, num_edge_layers, bidirectional, dropout
        )
        self.compose = PairComposer(hidden_dim, hidden_dim)

    def forward(
        self,
        obj_feats: Tensor,
        boxes: Tensor,
        num_objs: Sequence[int],
        union_feats: Tensor,
        pairs: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """See :meth:`BaseContext.forward`; both outputs have ``hidden_dim`` columns."""
        order = order_objects(boxes, num_objs, self.ordering)
        group = image_index(num_objs, boxes.device)
        ordered = self.dropout(obj_feats[order])
        obj_states = self.obj_rnn(ordered, group)
        edge_states = self.edge_rnn(torch.cat([ordered, self.dropout(obj_states)], dim=1), group)
        back = invert(order)
        return obj_states[back], self.compose(edge_states[back], pairs)
