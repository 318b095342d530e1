"""The contract that every context keeps, and what several of them are made of."""

from __future__ import annotations

import inspect
from abc import ABCMeta, abstractmethod
from collections.abc import Sequence
from typing import Any

from mmdet.registry import MODELS
from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.nn import functional as F


class BaseContext(BaseModule, metaclass=ABCMeta):
    """Lets the objects of an image, and their pairs, see each other.

    Objects and pairs of all images of a batch lie in one tensor each; no context passes anything
    from one image to another, so a batch gives what its images give one at a time.

    Args:
        in_dim: Size of an object's feature vector. The head fills it in.
        union_channels: Channels of the union maps. The head fills it in.
        out_dim: Size of ``obj_ctx`` rows; 0 allowed for none.
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
        """Put objects and pairs into context.

        Args:
            obj_feats: (N, in_dim) float, the objects of image 0, then of image 1, ...
            boxes: (N, 5) float: x1, y1, x2, y2 in pixels of the network's input, and the
                detector's confidence, 1 where the object is given.
            num_objs: Objects of each image; they sum to N and may be 0.
            union_feats: (M, union_channels, S, S) float, maps of the boxes around both objects.
            pairs: (M, 2) int64, rows of ``obj_feats`` of subject and object. No pair spans two
                images. Their order carries no meaning.

        Returns:
            ``obj_ctx`` (N, out_dim) and ``edge_ctx`` (M, edge_dim).
        """


def build_context(cfg: dict[str, Any]) -> BaseContext:
    """A context from its config.

    Raises:
        ValueError: An unknown type or key; the message has the known ones.
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
            f'{cls.__name__} has no {unknown[0]!r}; its keys: {keys}. To exchange the context of '
            'an inherited config, write context=dict(_delete_=True, type=...)'
        )
    return MODELS.build(cfg)


class PairComposer(nn.Module):
    """One vector for a pair from the states of its two objects, subject and object told apart.

    A linear map of the two states side by side, computed once an object and not once a pair.
    """

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.subject = nn.Linear(in_dim, out_dim)
        self.object = nn.Linear(in_dim, out_dim, bias=False)

    def forward(self, states: Tensor, pairs: Tensor) -> Tensor:
        """States (N, in_dim) and pairs (M, 2) to (M, out_dim)."""
        return F.relu(self.subject(states)[pairs[:, 0]] + self.object(states)[pairs[:, 1]])


class MapEncoder(nn.Module):
    """A vector from a feature map: pooled to a small grid, so that left stays apart from right.

    Args:
        channels: Channels of the map.
        out_dim: Size of the vector.
        grid: Cells along each side that the map is pooled to.
    """

    def __init__(self, channels: int, out_dim: int, grid: int = 3) -> None:
        super().__init__()
        self.grid = grid
        self.fc = nn.Linear(channels * grid * grid, out_dim)

    def forward(self, maps: Tensor) -> Tensor:
        """Maps (M, channels, S, S) to (M, out_dim)."""
        if maps.shape[-1] != self.grid or maps.shape[-2] != self.grid:
            maps = F.adaptive_avg_pool2d(maps, self.grid)
        return F.relu(self.fc(maps.flatten(1)))
