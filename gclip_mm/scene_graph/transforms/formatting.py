"""Packs image, boxes, relations and scene label for a scene-graph model."""

from __future__ import annotations

import numpy as np
import torch
from mmdet.datasets.transforms import PackDetInputs
from mmdet.registry import TRANSFORMS
from mmdet.structures.bbox import HorizontalBoxes
from mmengine.structures import InstanceData, LabelData

from .boxes import SceneGraphBoxes


@TRANSFORMS.register_module()
class PackSceneGraphInputs(PackDetInputs):
    """Pack the inputs of a scene-graph model.

    Adds to the data sample of :class:`mmdet.datasets.transforms.PackDetInputs`:

    - ``gt_relations`` (InstanceData): ``pairs`` (M, 2) int64, subject and object as indices into
      ``gt_instances``, and ``labels`` (M,) int64, the predicate. A pair may occur several times.
      Relations whose subject or object was dropped, or is ignored (crowd), are left out.
    - ``gt_instances.segment_ids`` (n,) int64, if ``LoadSceneGraphAnnotations`` loaded segments.
    - ``gt_scene`` (LabelData): ``label`` (1,) int64. Only if the image has a scene label.

    Adds neither if there are no annotations (inference).

    Raises:
        RuntimeError: A transform has lost the relations.

    Example:
        >>> dict(type='PackSceneGraphInputs',
        ...      meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'))
    """

    def transform(self, results: dict) -> dict:
        """Return ``inputs`` and ``data_samples``."""
        boxes = results.get('gt_bboxes')
        if boxes is None:
            return super().transform(results)
        if not isinstance(boxes, SceneGraphBoxes) or boxes.graph is None:
            raise RuntimeError(
                'the relations of an image are lost. Load annotations with '
                'LoadSceneGraphAnnotations, and do not use transforms that create new boxes, such '
                'as RandomErasing, Albu, CopyPaste and RandomCrop(recompute_bbox=True)'
            )
        graph = boxes.graph
        if not len(graph.ids) == len(boxes) == len(results['gt_bboxes_labels']):
            raise RuntimeError(
                f'a transform returned {len(boxes)} boxes, {len(graph.ids)} box ids and '
                f'{len(results["gt_bboxes_labels"])} labels'
            )
        packed = super().transform(
            {**results, 'gt_bboxes': HorizontalBoxes(boxes.tensor, clone=False)}
        )
        ignored = results.get('gt_ignore_flags')
        kept = None if ignored is None else np.flatnonzero(np.asarray(ignored) == 0)
        pairs, labels = graph.indexed(kept)
        data_sample = packed['data_samples']
        if 'segment_ids' in results:
            ids = (graph.ids if kept is None else graph.ids[kept]).tolist()
            data_sample.gt_instances.segment_ids = torch.tensor(
                [results['segment_ids'][i] for i in ids], dtype=torch.int64
            )
        data_sample.gt_relations = InstanceData(
            pairs=torch.from_numpy(np.ascontiguousarray(pairs)),
            labels=torch.from_numpy(np.ascontiguousarray(labels)),
        )
        if graph.scene is not None:
            data_sample.gt_scene = LabelData(label=torch.tensor([graph.scene]))
        return packed
