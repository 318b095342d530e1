"""Reads the ground truth of data samples; errors say what is missing."""

from __future__ import annotations

import torch
from mmdet.structures import DetDataSample, SampleList
from mmengine.structures import InstanceData
from torch import Tensor

from ..protocol import SceneGraphProtocol


def given_boxes(samples: SampleList, protocol: SceneGraphProtocol) -> list[Tensor]:
    """Ground-truth boxes (n, 4) of each image, in pixels of the network's input.

    Raises:
        ValueError: A data sample lacks boxes or labels that the protocol needs.
    """
    needed = ('bboxes', 'labels') if protocol.has_labels else ('bboxes',)
    for sample in samples:
        given = sample.get('gt_instances')
        missing = [key for key in needed if given is None or key not in given]
        if missing:
            raise ValueError(
                f'protocol={protocol.value!r} needs gt_instances.{missing[0]}, which '
                f'{sample.get("img_path", "an image")} lacks: load annotations in the test '
                "pipeline, or set model.protocol='sgdet'"
            )
    return [sample.gt_instances.bboxes for sample in samples]


def relations_of(sample: DetDataSample) -> InstanceData:
    """Ground-truth relations: ``pairs`` (R, 2) and ``labels`` (R,).

    Raises:
        ValueError: The data sample has no ``gt_relations``.
    """
    relations = sample.get('gt_relations')
    if relations is None:
        raise ValueError(
            f'{sample.get("img_path", "an image")} has no gt_relations to train on: use a '
            'SceneGraphDataset with LoadSceneGraphAnnotations and PackSceneGraphInputs'
        )
    return relations


def scene_label_of(sample: DetDataSample, device: torch.device) -> Tensor:
    """Scene label, (1,) int64; -1 for an image without a scene label."""
    scene = sample.get('gt_scene')
    return torch.full((1,), -1, device=device) if scene is None else scene.label.to(device)
