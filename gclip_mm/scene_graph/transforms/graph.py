"""The relations of an image as they travel through the data pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from .flips import PredicateFlips


@dataclass(frozen=True)
class RelationGraph:
    """The relations among the boxes of an image, and what keeps them right while boxes change.

    Relations name their ends by id, not by position, so a box can go, move or be copied without
    anybody looking at the relations. Immutable: a change makes a new graph.

    Args:
        ids: (N,) int64, an id for each box, equal ids being copies of the same box.
        triplets: (R, 3) int64 of subject id, object id, predicate label.
        flips: What flips do to the predicate labels.
        scene: Scene label of the image, None when it has none.
    """

    ids: np.ndarray
    triplets: np.ndarray
    flips: PredicateFlips
    scene: int | None = None

    def flipped(self, direction: str) -> RelationGraph:
        triplets = self.triplets.copy()
        triplets[:, 2] = self.flips.apply(triplets[:, 2], direction)
        return replace(self, triplets=triplets)

    def indexed(self, keep: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Relations by position among the boxes that ``keep`` (indices or mask) selects.

        A relation with an end that is gone is gone; an end that was copied gives a relation for
        each copy.

        Returns:
            pairs (M, 2) int64 and labels (M,) int64.
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
        """Boxes of several images put into one; none is related to a box of another image.

        The scene label stays when all images that bring boxes agree on it.

        Raises:
            ValueError: If the images have different predicates.
        """
        if any(graph.flips != graphs[0].flips for graph in graphs):
            raise ValueError('images with different predicates cannot be mixed into one')
        ids, triplets, offset = [], [], 0
        for graph in graphs:
            # The same image may be mixed with itself: its two copies must stay apart.
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
