"""Boxes that carry the relations among them through any transform that handles boxes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from mmdet.structures.bbox import BaseBoxes, HorizontalBoxes, register_box
from torch import Tensor

from .graph import RelationGraph


@register_box('scene_graph_hbox', force=True)
class SceneGraphBoxes(HorizontalBoxes):
    """:class:`mmdet.structures.bbox.HorizontalBoxes` with a :class:`RelationGraph`.

    MMDetection's transforms know a fixed list of keys and know nothing of relations, but every
    one of them that drops, reorders, duplicates, mixes or flips boxes says so to the boxes: it
    indexes them, concatenates them, calls ``flip_``. So that is where relations are kept right.

    Where a transform builds its boxes anew (RandomErasing, Albu, CopyPaste, RandomCrop with
    ``recompute_bbox=True``) the graph is lost, and
    :class:`~gclip_mm.scene_graph.transforms.PackSceneGraphInputs` or the concatenation raises.

    Args:
        *args, **kwargs: As for ``HorizontalBoxes``.
        graph (RelationGraph, optional): Relations among these boxes.
    """

    def __init__(self, *args, graph: RelationGraph | None = None, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.graph = graph

    def _same_boxes(self, boxes: SceneGraphBoxes) -> SceneGraphBoxes:
        boxes.graph = self.graph
        return boxes

    def __getitem__(self, index) -> SceneGraphBoxes:
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

    def __setitem__(self, index, values) -> None:
        raise NotImplementedError(
            'boxes that carry relations cannot be overwritten: index, concatenate or transform '
            'them instead, so that their relations follow'
        )

    def __deepcopy__(self, memo) -> SceneGraphBoxes:
        return self._same_boxes(super().__deepcopy__(memo))

    def clone(self) -> SceneGraphBoxes:
        return self._same_boxes(super().clone())

    def detach(self) -> SceneGraphBoxes:
        return self._same_boxes(super().detach())

    def cpu(self) -> SceneGraphBoxes:
        return self._same_boxes(super().cpu())

    def cuda(self, *args, **kwargs) -> SceneGraphBoxes:
        return self._same_boxes(super().cuda(*args, **kwargs))

    def to(self, *args, **kwargs) -> SceneGraphBoxes:
        return self._same_boxes(super().to(*args, **kwargs))

    def convert_to(self, dst_type: str | type) -> BaseBoxes:
        return HorizontalBoxes(self.tensor, clone=False).convert_to(dst_type)

    @classmethod
    def cat(cls, box_list: Sequence[BaseBoxes], dim: int = 0) -> SceneGraphBoxes:
        """Concatenate boxes, and their graphs as graphs of separate images.

        Raises:
            RuntimeError: If some of the boxes have no graph, because the transform made them anew.
        """
        graphs = [getattr(boxes, 'graph', None) for boxes in box_list]
        if dim != 0 or any(
            graph is None and len(boxes) for graph, boxes in zip(graphs, box_list, strict=True)
        ):
            raise RuntimeError(
                'a transform mixes boxes that carry relations with boxes that do not, as CopyPaste '
                'does: it cannot be used with relations'
            )
        tensors = [boxes.tensor for boxes in box_list]
        graphs = [graph for graph in graphs if graph is not None]
        return cls(
            torch.cat(tensors, dim=0),
            clone=False,
            graph=RelationGraph.union(graphs) if graphs else None,
        )

    def flip_(self, img_shape: tuple[int, int], direction: str = 'horizontal') -> None:
        """Flip the boxes in place, and swap the predicates that the metainfo says to swap.

        Raises:
            ValueError: If the metainfo does not say which predicates swap.
        """
        graph = None if self.graph is None else self.graph.flipped(direction)
        super().flip_(img_shape, direction)
        self.graph = graph

    def project_(self, homography_matrix: Tensor | np.ndarray) -> None:
        """Transform the boxes in place; a matrix that mirrors the image swaps predicates.

        Raises:
            ValueError: If the image is turned so far that left becomes up, while a relation says
                left, right, above or below.
        """
        graph = self.graph
        if graph is not None:
            direction = _mirrored(np.asarray(homography_matrix, np.float64))
            if direction is None and graph.flips.oriented()[graph.triplets[:, 2]].any():
                raise ValueError(
                    'a transform turns the image by more than 45 degrees: relations like '
                    '"left of" have no meaning after that'
                )
            graph = graph.flipped(direction) if direction else graph
        super().project_(homography_matrix)
        self.graph = graph


def _mirrored(matrix: np.ndarray) -> str | None:
    """The flip that a homography amounts to: '' for none, None when it swaps the axes."""
    (a, b), (c, d) = matrix[:2, :2] / (matrix[2, 2] or 1.0)
    if abs(a) <= abs(b) or abs(d) <= abs(c):
        return None
    return {(True, True): 'diagonal', (True, False): 'horizontal', (False, True): 'vertical'}.get(
        (a < 0, d < 0), ''
    )
