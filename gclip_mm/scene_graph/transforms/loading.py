"""Loads boxes together with the relations among them."""

from __future__ import annotations

from typing import Any

import numpy as np
from mmdet.datasets.transforms import LoadAnnotations
from mmdet.registry import TRANSFORMS
from mmdet.structures.mask import BitmapMasks

from ..segments import masks_of, read_segments
from .boxes import SceneGraphBoxes
from .flips import PredicateFlips
from .graph import RelationGraph


@TRANSFORMS.register_module()
class LoadSceneGraphAnnotations(LoadAnnotations):
    """Load boxes and labels (and masks) with the relations among the boxes and the scene label.

    Replaces MMDetection's ``LoadAnnotations``. ``results['gt_bboxes']`` is of type
    :class:`~gclip_mm.scene_graph.transforms.boxes.SceneGraphBoxes`, which updates the relations in
    later transforms, or raises.

    It has to precede all transforms that move pixels. This includes the test pipeline, because
    PredCls and SGCls use the ground-truth boxes in pixels of the resized image.

    Required keys: those of ``LoadAnnotations`` with an ``ann_id`` in each of ``instances``;
    ``relations`` ((R, 3) int of subject ann_id, object ann_id, predicate label),
    ``predicate_flips``, ``scene_label`` (optional), as
    returned by :class:`~gclip_mm.scene_graph.datasets.SceneGraphDataset`.

    Args:
        with_seg: Also load the panoptic segments, as the masks of the objects (``gt_masks``), and
            their ids, by which :class:`SceneGraphMetric` with ``match='mask'`` finds them.
        **kwargs: As for :class:`mmdet.datasets.transforms.LoadAnnotations`. ``with_bbox`` and
            ``with_label`` must be True, ``box_type`` must be 'hbox'.

    Raises:
        ValueError: An option would lose relations.
        RuntimeError: The image was already transformed, or the annotations are not from a
            scene-graph data set.

    Example:
        >>> train_pipeline = [
        ...     dict(type='LoadImageFromFile'),
        ...     dict(type='LoadSceneGraphAnnotations'),
        ...     dict(type='Resize', scale=(1333, 800), keep_ratio=True),
        ...     dict(type='RandomFlip', prob=0.5),
        ...     dict(type='PackSceneGraphInputs')]
    """

    def __init__(self, with_seg: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if with_seg and self.with_mask:
            raise ValueError('with_seg=True gives the masks already: leave out with_mask')
        self.with_segments = with_seg
        if not (self.with_bbox and self.with_label):
            raise ValueError('relations need boxes and labels: with_bbox=True, with_label=True')
        if self.box_type != 'hbox':
            raise ValueError(f"relations need box_type='hbox', got {self.box_type!r}")

    def transform(self, results: dict) -> dict:
        """Add ``gt_bboxes`` with relations, ``gt_bboxes_labels``, ``gt_ignore_flags``."""
        early = [key for key in ('scale_factor', 'flip', 'homography_matrix') if key in results]
        if early:
            raise RuntimeError(
                'LoadSceneGraphAnnotations must come before the transforms that resize, crop or '
                f'flip the image, but the image already has {early}'
            )
        missing = [key for key in ('relations', 'predicate_flips') if key not in results]
        if missing:
            raise RuntimeError(
                f'LoadSceneGraphAnnotations needs {missing}: use it with SceneGraphDataset'
            )
        instances = results.get('instances', [])
        if any('ann_id' not in instance for instance in instances):
            raise RuntimeError(
                'an instance has no ann_id: a transform before LoadSceneGraphAnnotations replaced '
                'the annotations, as InstaBoost does, so relations would be lost'
            )
        results = super().transform(results)
        flips: PredicateFlips = results['predicate_flips']
        graph = RelationGraph(
            np.array([instance['ann_id'] for instance in instances], np.int64),
            np.asarray(results['relations'], np.int64).reshape(-1, 3),
            flips,
            results.get('scene_label'),
        )
        results['gt_bboxes'] = SceneGraphBoxes(
            results['gt_bboxes'].tensor, clone=False, graph=graph
        )
        if self.with_segments:
            self._load_segments(results, instances)
        return results

    @staticmethod
    def _load_segments(results: dict, instances: list[dict]) -> None:
        """Add ``gt_masks`` and ``segment_ids``, the segment of each annotation id."""
        path = results.get('seg_map_path')
        without = [i['ann_id'] for i in instances if 'segment_id' not in i]
        if path is None or without:
            what = '"pan_seg_file_name"' if path is None else f'"segment_id" of box {without[0]}'
            raise RuntimeError(
                f'with_seg=True, but the annotation file has no {what} for '
                f'{results.get("img_path")}; gclip convert psg writes it'
            )
        ids = [instance['segment_id'] for instance in instances]
        masks = masks_of(read_segments(path), ids)
        results['gt_masks'] = BitmapMasks(masks.astype(np.uint8), *masks.shape[1:])
        results['segment_ids'] = {i['ann_id']: i['segment_id'] for i in instances}
