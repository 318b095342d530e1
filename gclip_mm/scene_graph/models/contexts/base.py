"""Base class of contexts, and modules that several contexts share."""

from __future__ import annotations

import inspect
from abc import ABCMeta, abstractmethod
from collections.abc import Sequence
from typing import Any

from mmdet.registry import MODELS
from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.nn import functional as F

from ..pooling import average_to


class BaseContext(BaseModule, metaclass=ABCMeta):
    """Passes information between the objects of an image and between their pairs.

    The objects of all images of a batch are concatenated in one tensor, and so are the pairs. A
    context passes nothing between images, so results do not depend on the batch.

    Args:
        in_dim: Size of an object's feature vector. The relation head sets it.
        union_channels: Channels of the union maps. The relation head sets it.
        out_dim: Size of ``obj_ctx`` rows; 0 for no object context.
        edge_dim: Size of ``edge_ctx`` rows.
        init_cfg: Initialisation, see MMEngine.
    """

    def __init__(
        self,
        in_dim: int,
        union_channels: int,
        out_dim: int,
        edge_dim: int,
        init_cfg: dict | list | None = None,
    ) -> None:
        super().__init__(init_cfg)
        self.in_dim = in_dim
        self.union_channels = union_channels
        self.out_dim = out_dim
        self.edge_dim = edge_dim

    @abstractmethod
    def forward(
        self,
        obj_feats: Tensor,
        boxes: Tensor,
        num_objs: Sequence[int],
        union_feats: Tensor,
        pairs: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Compute the context of objects and pairs.

        Args:
            obj_feats: (N, in_dim) float, the objects of image 0, then of image 1, ...
            boxes: (N, 5) float: x1, y1, x2, y2 in pixels of the network's input, and the
                detector's confidence (1 for given objects).
            num_objs: Number of objects of each image, possibly 0. The sum is N.
            union_feats: (M, union_channels, S, S) float, feature maps of the union boxes.
            pairs: (M, 2) int64, rows of subject and object in ``obj_feats``, both of the same
                image, in arbitrary order.

        Returns:
            ``obj_ctx`` (N, out_dim) and ``edge_ctx`` (M, edge_dim).
        """


def build_context(cfg: dict[str, Any]) -> BaseContext:
    """Build a context from its config.

    Raises:
        ValueError: The type or a key is unknown; the message lists the valid ones.
    """
    kind = cfg.get('type')
    cls = MODELS.get(kind) if isinstance(kind, str) else kind
    if not (inspect.isclass(cls) and issubclass(cls, BaseContext)):
        known = (c for c in MODELS.module_dict.values() if inspect.isclass(c))
        names = sorted({c.__name__ for c in known if issubclass(c, BaseContext)})
        raise ValueError(f'context.type must be one of {names}, got {kind!r}')
    keys = [key for key in inspect.signature(cls).parameters if key != 'init_cfg']
    unknown = sorted(set(cfg) - {'type', 'init_cfg', *keys})
    if unknown:
        raise ValueError(
            f'{cls.__name__} has no {unknown[0]!r}; its keys: {keys}. To replace the context of '
            'an inherited config, write context=dict(_delete_=True, type=...)'
        )
    return MODELS.build(cfg)


class PairComposer(nn.Module):
    """Combines the states of subject and object to one vector for each pair.

    Equals a linear layer on the concatenated states, but is computed per object and not per pair.
    """

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.subject = nn.Linear(in_dim, out_dim)
        self.object = nn.Linear(in_dim, out_dim, bias=False)

    def forward(self, states: Tensor, pairs: Tensor) -> Tensor:
        """Map states (N, in_dim) and pairs (M, 2) to (M, out_dim)."""
        return F.relu(self.subject(states)[pairs[:, 0]] + self.object(states)[pairs[:, 1]])


class MapEncoder(nn.Module):
    """Encodes a feature map as a vector. Pooling to a small grid keeps the spatial layout.

    Args:
        channels: Channels of the map.
        out_dim: Size of the vector.
        grid: Height and width of the pooled map.
    """

    def __init__(self, channels: int, out_dim: int, grid: int = 3) -> None:
        super().__init__()
        self.grid = grid
        self.fc = nn.Linear(channels * grid * grid, out_dim)

    def forward(self, maps: Tensor) -> Tensor:
        """Map (M, channels, S, S) to (M, out_dim)."""
        if maps.shape[-1] != self.grid or maps.shape[-2] != self.grid:
            maps = average_to(maps, self.grid)
        return F.relu(self.fc(maps.flatten(1)))
