"""Converts logits to the scene graph of each image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from mmdet.structures import DetDataSample, SampleList
from mmengine.structures import InstanceData, LabelData
from torch import Tensor
from torch.nn import functional as F

from ..heads.relation_head import GraphLogits, GraphObjects
from ..protocol import SceneGraphProtocol
from ..task_modules.graph_nms import refined_nms


class SceneGraphOutput(NamedTuple):
    """Inputs and outputs of the relation head for a batch.

    Attributes:
        objects: N objects.
        pairs: (M, 2) int64, row indices of the objects.
        num_pairs: Number of pairs of each image.
        logits: Logits of objects and pairs.
    """

    objects: GraphObjects
    pairs: Tensor
    num_pairs: list[int]
    logits: GraphLogits


class ObjectContext(NamedTuple):
    """What the scene head reads of the objects of a batch.

    Attributes:
        features: (N, D).
        counts: Number of objects of each image.
    """

    features: Tensor
    counts: list[int]


def split_graphs(
    output: SceneGraphOutput,
    protocol: SceneGraphProtocol,
    cfg: dict[str, Any],
    masks: Sequence[Tensor] | None = None,
) -> list[tuple[InstanceData, InstanceData]]:
    """Compute objects and relations of each image.

    Args:
        output: Inputs and outputs of the relation head.
        protocol: Determines whether labels are refined and duplicates suppressed.
        cfg: ``test_cfg.relation``.
        masks: For each image (N, H, W) bool, the masks of its objects, if the detector has some.

    Returns:
        For each image, objects with ``bboxes`` (n, 4), ``labels`` (n,) and ``scores`` (n,), and
        ``masks`` (n, H, W) if given; and
        relations with ``pairs`` (m, 2), indices of the objects, and ``scores`` (m, P) without
        "no relation".
    """
    num_objs, graphs, start = output.objects.num_objs, [], 0
    boxes = output.objects.boxes.split(num_objs)
    probs = _object_probs(output, protocol).split(num_objs)
    pairs = output.pairs.split(output.num_pairs)
    scores = output.logits.predicates.softmax(dim=1)[:, :-1].split(output.num_pairs)
    for i, count in enumerate(num_objs):
        graphs.append(
            image_graph(
                boxes[i][:, :4],
                probs[i],
                pairs[i] - start,
                scores[i],
                protocol,
                cfg,
                None if masks is None else masks[i],
            )
        )
        start += count
    return graphs


def _object_probs(output: SceneGraphOutput, protocol: SceneGraphProtocol) -> Tensor:
    if protocol.has_labels:
        return output.objects.probs[:, :-1]
    logits = output.logits.objects
    if protocol is SceneGraphProtocol.SGCLS:
        return logits[:, :-1].softmax(dim=1)  # a given box is never background
    return logits.softmax(dim=1)[:, :-1]


def image_graph(
    boxes: Tensor,
    probs: Tensor,
    pairs: Tensor,
    predicate_scores: Tensor,
    protocol: SceneGraphProtocol,
    cfg: dict[str, Any],
    masks: Tensor | None = None,
) -> tuple[InstanceData, InstanceData]:
    """Compute objects and relations of an image.

    Args:
        boxes: (N, 4) xyxy.
        probs: (N, C) class probabilities without background.
        pairs: (M, 2) int64, rows of ``boxes``.
        predicate_scores: (M, P).
        protocol: Determines whether duplicates are suppressed.
        cfg: ``test_cfg.relation``.
        masks: (N, H, W) bool.

    Returns:
        As one element of :func:`split_graphs`.
    """
    if protocol is SceneGraphProtocol.SGDET and cfg['nms_iou_thr'] is not None:
        keep, labels, scores = refined_nms(boxes, probs, cfg['nms_iou_thr'])
        position = torch.full((len(boxes),), -1, dtype=torch.int64, device=boxes.device)
        position[keep] = torch.arange(len(keep), device=boxes.device)
        boxes, pairs = boxes[keep], position[pairs]
        masks = None if masks is None else masks[keep]
        whole = (pairs >= 0).all(dim=1)
        pairs, predicate_scores = pairs[whole], predicate_scores[whole]
    elif len(boxes):
        scores, labels = probs.max(dim=1)
    else:
        scores, labels = boxes.new_zeros(0), pairs.new_zeros(0)
    most = cfg['max_relations']
    if most is not None and len(pairs) > most:
        rank = scores[pairs].prod(dim=1) * predicate_scores.amax(dim=1)
        chosen = torch.sort(rank, descending=True, stable=True).indices[:most].sort().values
        pairs, predicate_scores = pairs[chosen], predicate_scores[chosen]
    objects = InstanceData(bboxes=boxes, labels=labels, scores=scores)
    if masks is not None:
        objects.masks = masks
    return objects, InstanceData(pairs=pairs, scores=predicate_scores)


def write_predictions(
    samples: SampleList,
    graphs: list[tuple[InstanceData, InstanceData]],
    scene_logits: Tensor | None,
    rescale: bool,
) -> SampleList:
    """Write the graphs into the data samples.

    Args:
        samples: One data sample for each image; modified in place.
        graphs: Output of :func:`split_graphs`.
        scene_logits: (B, S), or None.
        rescale: Convert boxes from pixels of the network's input to those of the original image.

    Returns:
        ``samples``, with ``pred_instances``, ``pred_relations`` and, given scene logits,
        ``pred_scene`` (LabelData: ``score`` (S,) and ``label`` (1,)).
    """
    for i, (sample, (objects, relations)) in enumerate(zip(samples, graphs, strict=True)):
        if rescale:
            objects.bboxes = objects.bboxes / objects.bboxes.new_tensor(
                sample.metainfo.get('scale_factor', (1.0, 1.0))
            ).repeat(2)
            if 'masks' in objects:
                objects.masks = _rescaled(objects.masks, sample)
        sample.pred_instances = objects
        sample.pred_relations = relations
        if scene_logits is not None:
            score = scene_logits[i].softmax(dim=0)
            sample.pred_scene = LabelData(score=score, label=score.argmax().reshape(1))
    return samples


def _rescaled(masks: Tensor, sample: DetDataSample) -> Tensor:
    """Masks (n, H, W) bool of the network's input in pixels of the original image."""
    height, width = sample.img_shape[:2]
    size = tuple(sample.metainfo.get('ori_shape', sample.img_shape)[:2])
    inside = masks[:, :height, :width]
    if inside.shape[1:] == size or not len(inside):
        return inside if len(inside) else masks.new_zeros(0, *size)
    scaled = F.interpolate(inside[None].float(), size, mode='bilinear', align_corners=False)[0]
    return scaled >= 0.5
