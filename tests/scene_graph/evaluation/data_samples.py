"""Random graphs as data samples, for the metric classes and the commands."""

from __future__ import annotations

import torch
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData

from tests.scene_graph.evaluation.random_graphs import NUM_CLASSES, NUM_PREDICATES, random_graphs

META = dict(
    classes=tuple(f'class {i}' for i in range(NUM_CLASSES)),
    predicates=tuple(f'predicate {i}' for i in range(NUM_PREDICATES)),
)


def data_samples(protocol: str) -> list[DetDataSample]:
    samples = []
    for i, (prediction, truth) in enumerate(zip(*random_graphs(protocol), strict=True)):
        sample = DetDataSample(
            metainfo=dict(img_id=i, img_path=f'{i}.jpg', ori_shape=(500, 500), scale_factor=(1, 1))
        )
        relations = torch.tensor(truth['relations'])
        sample.gt_instances = InstanceData(
            bboxes=torch.tensor(truth['bboxes']), labels=torch.tensor(truth['labels'])
        )
        sample.gt_relations = InstanceData(pairs=relations[:, :2], labels=relations[:, 2])
        sample.pred_instances = InstanceData(
            **{k: torch.tensor(prediction[k]) for k in ('bboxes', 'labels', 'scores')}
        )
        sample.pred_relations = InstanceData(
            pairs=torch.tensor(prediction['pairs']), scores=torch.tensor(prediction['rel_scores'])
        )
        samples.append(sample)
    return samples
