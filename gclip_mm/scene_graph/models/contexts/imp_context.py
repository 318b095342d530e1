"""Context by iterative message passing between objects and pairs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from mmdet.registry import MODELS
from torch import Tensor, nn

from .base import BaseContext, MapEncoder
from .sequences import count_by, sum_by


class _Gate(nn.Module):
    """Multiplies a message by a learned weight in (0, 1), computed from receiver and message."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc = nn.Linear(2 * dim, 1)

    def forward(self, receiver: Tensor, message: Tensor) -> Tensor:
        return torch.sigmoid(self.fc(torch.cat([receiver, message], dim=1))) * message


@MODELS.register_module()
class IMPContext(BaseContext):
    """Message passing between objects and pairs.

    Xu et al., Scene Graph Generation by Iterative Message Passing, arXiv 1701.02426. One GRU
    updates the states of objects and another the states of pairs. In each round an object receives
    messages from its outgoing and incoming pairs, and a pair from its subject and object. A
    learned gate weights each message. The initial state of a pair is computed from its union map.
    Equivariant to the order of the objects.

    Args:
        in_dim: Size of an object's feature vector. The relation head sets it.
        union_channels: Channels of the union maps. The relation head sets it.
        hidden_dim: Size of the states, ``obj_ctx`` and ``edge_ctx`` rows.
        num_iters: Rounds of messages. Two are best according to the paper.
        aggregate: Reduction of an object's messages: ``'sum'`` as in the paper, or ``'mean'``,
            whose scale does not grow with the number of objects.

    Raises:
        ValueError: ``num_iters`` is below 0, or ``aggregate`` is unknown.

    Example:
        >>> relation_head = dict(context=dict(type='IMPContext', hidden_dim=512, num_iters=2))
    """

    def __init__(
        self,
        in_dim: int,
        union_channels: int,
        hidden_dim: int = 512,
        num_iters: int = 2,
        aggregate: str = 'sum',
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(in_dim, union_channels, hidden_dim, hidden_dim, init_cfg)
        if num_iters < 0:
            raise ValueError(f'num_iters must be at least 0, got {num_iters}')
        if aggregate not in ('sum', 'mean'):
            raise ValueError(f"aggregate must be 'sum' or 'mean', got {aggregate!r}")
        self.num_iters = num_iters
        self.aggregate = aggregate
        self.obj_in = nn.Linear(in_dim, hidden_dim)
        self.edge_in = MapEncoder(union_channels, hidden_dim)
        self.obj_gru = nn.GRUCell(hidden_dim, hidden_dim)
        self.edge_gru = nn.GRUCell(hidden_dim, hidden_dim)
        self.from_outgoing, self.from_incoming = _Gate(hidden_dim), _Gate(hidden_dim)
        self.from_subject, self.from_object = _Gate(hidden_dim), _Gate(hidden_dim)

    def forward(
        self,
        obj_feats: Tensor,
        boxes: Tensor,
        num_objs: Sequence[int],
        union_feats: Tensor,
        pairs: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """See :meth:`BaseContext.forward`; both outputs have ``hidden_dim`` columns."""
        subject, object_ = pairs.unbind(1)
        obj = self.obj_gru(self.obj_in(obj_feats).relu())
        edge = self.edge_gru(self.edge_in(union_feats))
        for _ in range(self.num_iters):
            to_edge = self.from_subject(edge, obj[subject]) + self.from_object(edge, obj[object_])
            to_obj = self._collect(self.from_outgoing(obj[subject], edge), subject, obj.shape[0])
            to_obj = to_obj + self._collect(
                self.from_incoming(obj[object_], edge), object_, obj.shape[0]
            )
            obj, edge = self.obj_gru(to_obj, obj), self.edge_gru(to_edge, edge)
        return obj, edge

    def _collect(self, messages: Tensor, receiver: Tensor, num_objs: int) -> Tensor:
        total = sum_by(messages, receiver, num_objs)
        if self.aggregate == 'mean':
            count = count_by(receiver, num_objs).clamp(min=1)
            total = total / count[:, None].to(total.dtype)
        return total
