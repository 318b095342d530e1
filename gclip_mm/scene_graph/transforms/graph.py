"""Relations of an image in the data pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from .flips import PredicateFlips


@dataclass(frozen=True)
class RelationGraph:
    """Relations among the boxes of an image. Immutable: a change creates a new graph.

    Relations refer to boxes by id and not by position, so dropping, moving or copying a box does
    not change the triplets.

    Args:
        ids: (N,) int64, the id of each box. Equal ids are copies of the same box.
        triplets: (R, 3) int64: subject id, object id, predicate label.
        flips: Predicate changes under flips.
        scene: Scene label of the image, or None.
    """

    ids: np.ndarray
    triplets: np.ndarray
    flips: PredicateFlips
    scene: int | None = None

    def flipped(self, direction: str) -> RelationGraph:
        """Graph after a flip; see :meth:`PredicateFlips.apply`."""
        triplets = self.triplets.copy()
        triplets[:, 2] = self.flips.apply(triplets[:, 2], direction)
        return replace(self, triplets=triplets)

    def indexed(self, keep: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Relations by box position.

        A relation with a missing subject or object is dropped. A copied subject or object gives
        one relation for each copy.

        Args:
            keep: Indices or mask of the boxes to use. None: all.

        Returns:
            Pairs (M, 2) int64 and labels (M,) int64.
        """
        ids = self.ids if keep is None else self.ids[keep]
        positions: dict[int, list[int]] = {}
        for position, box_id in enumerate(ids.tolist()):
            positions.setdefault(box_id, []).append(position)
        rows = [
            (s, o, predicate)
            for subject, object_, predicate in self.triplets.tolist()
            for s in positions.get(subject, ())
            for o in positions.get(object_, ())
        ]
        array = np.array(rows, np.int64).reshape(-1, 3)
        return array[:, :2], array[:, 2]

    @staticmethod
    def union(graphs: Sequence[RelationGraph]) -> RelationGraph:
        """Merge the graphs of several images; boxes of different images stay unrelated.

        The scene label is kept if it is the same in all images that have boxes.

        Raises:
            ValueError: The images have different predicates.
        """
        if any(graph.flips != graphs[0].flips for graph in graphs):
            raise ValueError('images with different predicates cannot be mixed')
        ids: list[np.ndarray] = []
        triplets: list[np.ndarray] = []
        offset = 0
        for graph in graphs:
            # Renumber, because an image may be mixed with itself and its copies must stay separate.
            known, renumbered = np.unique(graph.ids, return_inverse=True)
            both = np.isin(graph.triplets[:, :2], known).all(axis=1)
            ends = np.searchsorted(known, graph.triplets[both, :2]) + offset
            ids.append(renumbered.ravel() + offset)
            triplets.append(np.column_stack((ends, graph.triplets[both, 2])))
            offset += len(known)
        scenes = {graph.scene for graph in graphs if len(graph.ids)} or {graphs[0].scene}
        return RelationGraph(
            np.concatenate(ids).astype(np.int64),
            np.concatenate(triplets).astype(np.int64).reshape(-1, 3),
            graphs[0].flips,
            scenes.pop() if len(scenes) == 1 else None,
        )
