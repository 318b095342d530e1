"""Boxes that carry their relations through transforms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from mmdet.structures.bbox import BaseBoxes, HorizontalBoxes, register_box
from torch import Tensor

from .graph import RelationGraph


@register_box('scene_graph_hbox', force=True)
class SceneGraphBoxes(HorizontalBoxes):
    """:class:`mmdet.structures.bbox.HorizontalBoxes` with a :class:`RelationGraph`.

    MMDetection's transforms do not handle relations. But each transform that drops, reorders,
    duplicates, mixes or flips boxes does so through the boxes' methods: indexing, concatenation or
    ``flip_``. This class overrides these methods to update the relations.

    A transform that creates new boxes (RandomErasing, Albu, CopyPaste, RandomCrop with
    ``recompute_bbox=True``) loses the graph. Then
    :class:`~gclip_mm.scene_graph.transforms.PackSceneGraphInputs` or the concatenation raises.

    Args:
        args, kwargs: As for ``HorizontalBoxes``.
        graph (RelationGraph, optional): Relations among these boxes.
    """

    def __init__(self, *args: Any, graph: RelationGraph | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.graph = graph

    def _same_boxes(self, boxes: SceneGraphBoxes) -> SceneGraphBoxes:
        boxes.graph = self.graph
        return boxes

    def __getitem__(self, index: Any) -> SceneGraphBoxes:
        boxes = super().__getitem__(index)
        if self.graph is not None and not isinstance(index, tuple) and boxes.dim() == 2:
            where = torch.as_tensor(index) if isinstance(index, np.ndarray) else index
            if isinstance(where, Tensor):
                where = where.cpu()
            ids = torch.from_numpy(self.graph.ids)[where].reshape(-1).numpy()
            boxes.graph = RelationGraph(
                ids, self.graph.triplets, self.graph.flips, self.graph.scene
            )
        return boxes

    def __setitem__(self, index: Any, values: Any) -> None:
        raise NotImplementedError(
            'boxes with relations cannot be overwritten: index, concatenate or transform them '
            'instead, which updates their relations'
        )

    def __deepcopy__(self, memo: dict) -> SceneGraphBoxes:
        return self._same_boxes(super().__deepcopy__(memo))

    def clone(self) -> SceneGraphBoxes:
        return self._same_boxes(super().clone())

    def detach(self) -> SceneGraphBoxes:
        return self._same_boxes(super().detach())

    def cpu(self) -> SceneGraphBoxes:
        return self._same_boxes(super().cpu())

    def cuda(self, *args: Any, **kwargs: Any) -> SceneGraphBoxes:
        return self._same_boxes(super().cuda(*args, **kwargs))

    def to(self, *args: Any, **kwargs: Any) -> SceneGraphBoxes:
        return self._same_boxes(super().to(*args, **kwargs))

    def convert_to(self, dst_type: str | type) -> BaseBoxes:
        return HorizontalBoxes(self.tensor, clone=False).convert_to(dst_type)

    @classmethod
    def cat(cls, box_list: Sequence[BaseBoxes], dim: int = 0) -> SceneGraphBoxes:
        """Concatenate boxes; their graphs are treated as graphs of separate images.

        Raises:
            RuntimeError: Some boxes have no graph, because a transform created new boxes.
        """
        graphs = [getattr(boxes, 'graph', None) for boxes in box_list]
        if dim != 0 or any(
            graph is None and len(boxes) for graph, boxes in zip(graphs, box_list, strict=True)
        ):
            raise RuntimeError(
                'a transform mixes boxes with relations and boxes without, as CopyPaste does: it '
                'cannot be used with relations'
            )
        tensors = [boxes.tensor for boxes in box_list]
        present = [graph for graph in graphs if graph is not None]
        return cls(
            torch.cat(tensors, dim=0),
            clone=False,
            graph=RelationGraph.union(present) if present else None,
        )

    def flip_(self, img_shape: tuple[int, int], direction: str = 'horizontal') -> None:
        """Flip the boxes in place, and swap the predicate pairs that the metainfo lists.

        Raises:
            ValueError: The metainfo does not list the predicates to swap.
        """
        graph = None if self.graph is None else self.graph.flipped(direction)
        super().flip_(img_shape, direction)
        self.graph = graph

    def project_(self, homography_matrix: Tensor | np.ndarray) -> None:
        """Transform the boxes in place; a matrix that mirrors the image swaps predicates.

        Raises:
            ValueError: The image is rotated by more than 45 degrees and has a relation whose
                predicate depends on the direction.
        """
        graph = self.graph
        if graph is not None:
            direction = _mirrored(np.asarray(homography_matrix, np.float64))
            if direction is None and graph.flips.oriented()[graph.triplets[:, 2]].any():
                raise ValueError(
                    'a transform rotates the image by more than 45 degrees, which invalidates '
                    'relations such as "left of"'
                )
            graph = graph.flipped(direction) if direction else graph
        super().project_(homography_matrix)
        self.graph = graph


def _mirrored(matrix: np.ndarray) -> str | None:
    """Flip contained in a homography: '' for none, None if the axes are swapped."""
    (a, b), (c, d) = matrix[:2, :2] / (matrix[2, 2] or 1.0)
    if abs(a) <= abs(b) or abs(d) <= abs(c):
        return None
    return {(True, True): 'diagonal', (True, False): 'horizontal', (False, True): 'vertical'}.get(
        (a < 0, d < 0), ''
    )
