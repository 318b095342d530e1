"""Relations of the queries of a DETR, read from its decoder."""

from __future__ import annotations

from typing import Any

import torch
from mmdet.structures import SampleList
from mmengine.structures import InstanceData
from torch import Tensor

from ..heads.egtr_head import QueryLogits, QueryStates
from ..task_modules.pair_sampler import candidate_pairs
from ..task_modules.query_matching import lowest_cost, match_queries
from .adapters.decoder_queries import pixel_boxes, recorded_queries
from .ground_truth import relations_of
from .postprocess import ObjectContext, image_graph


class QueryRelations:
    """Runs an :class:`EGTRHead` on the decoder of a :class:`SceneGraphDetector`'s detector.

    One forward pass of the detector gives its losses, or its detections, and what the head reads.

    Args:
        model: The model. Its ``relation_head`` reads queries.
    """

    #: Whether a detector without losses of its own can train through its feature maps.
    trains_features = False

    def __init__(self, model: Any) -> None:
        self.model = model

    @property
    def object_limit(self) -> tuple[str, int]:
        """Config key and value of the number of objects of an image: at most one for each query."""
        queries = self.model.detector.num_queries
        most = self.model.relation_test_cfg['max_objects']
        if most is None or most > queries:
            return 'model.detector.num_queries', queries
        return 'model.test_cfg.relation.max_objects', most

    def loss(
        self,
        maps: tuple[Tensor, ...],
        x: tuple[Tensor, ...],
        batch_inputs: Tensor,
        samples: SampleList,
    ) -> tuple[dict[str, Any], dict[str, Any], ObjectContext]:
        """Losses of the detector and of the relation head; see :meth:`RoIRelations.loss`.

        Raises:
            ValueError: The detector has no assigner with match costs to train with.
        """
        model = self.model
        costs = self._match_costs()
        losses: dict[str, Any] = {}
        with recorded_queries(model.detector) as recorder:
            if model.detector_loss:
                losses, _ = model.adapter.losses(maps, batch_inputs, samples)
            else:
                model.adapter.detect(maps, batch_inputs, samples)
        states = recorder.states(model.detector)
        logits = model.relation_head(states)
        matches = [
            match_queries(
                costs,
                states.logits[i],
                pixel_boxes(states.boxes[i], sample.img_shape),
                sample.gt_instances,
                sample.metainfo,
            )
            for i, sample in enumerate(samples)
        ]
        heads = model.relation_head.loss(logits, matches, [relations_of(s) for s in samples])
        return losses, heads, self._objects(states)

    def predict(
        self,
        maps: tuple[Tensor, ...],
        x: tuple[Tensor, ...],
        batch_inputs: Tensor,
        samples: SampleList,
    ) -> tuple[list[tuple[InstanceData, InstanceData]], ObjectContext]:
        """Objects and relations of each image; see :meth:`RoIRelations.predict`.

        Every query is an object, with its best class, as published: R@K ranks by the product of
        scores, so the queries on background come last.
        """
        states, logits = self._predicted(maps, batch_inputs, samples)
        scores = self.model.relation_head.scores(logits)
        graphs = [self._graph(states, scores[i], i, sample) for i, sample in enumerate(samples)]
        return graphs, self._objects(states)

    def logits(
        self,
        maps: tuple[Tensor, ...],
        x: tuple[Tensor, ...],
        batch_inputs: Tensor,
        samples: SampleList,
    ) -> tuple[Tensor, ...]:
        """Raw logits of classes (B, Q, C), predicates (B, Q, Q, P) and connectivity (B, Q, Q)."""
        states, logits = self._predicted(maps, batch_inputs, samples)
        return states.logits, logits.predicates, logits.connectivity

    def _match_costs(self) -> list:
        """The match costs that the detector trains with, checked."""
        assigner = getattr(self.model.detector.bbox_head, 'assigner', None)
        costs = getattr(assigner, 'match_costs', None)
        if not costs:
            raise ValueError(
                'the relation head matches queries as the detector does, and the detector has no '
                "match costs: set detector.train_cfg.assigner=dict(type='HungarianAssigner', ...)"
            )
        lowest_cost(costs)
        return costs

    def _predicted(
        self, maps: tuple[Tensor, ...], batch_inputs: Tensor, samples: SampleList
    ) -> tuple[QueryStates, QueryLogits]:
        model = self.model
        with recorded_queries(model.detector) as recorder:
            model.adapter.detect(maps, batch_inputs, samples)
        states = recorder.states(model.detector)
        return states, model.relation_head(states)

    def _graph(
        self, states: QueryStates, scores: Tensor, image: int, sample: Any
    ) -> tuple[InstanceData, InstanceData]:
        cfg = self.model.relation_test_cfg
        probs, boxes = states.probs[image], pixel_boxes(states.boxes[image], sample.img_shape)
        boxes = boxes.float()
        height, width = sample.img_shape[:2]
        boxes = torch.minimum(boxes.clamp(min=0), boxes.new_tensor([width, height] * 2))
        confidence = probs.amax(dim=1)
        solid = (boxes[:, 2:] > boxes[:, :2]).all(dim=1).nonzero()[:, 0]
        order = torch.sort(confidence[solid], descending=True, stable=True).indices
        kept = solid[order][: cfg['max_objects']]
        boxes, probs = boxes[kept], probs[kept]
        pairs = candidate_pairs(boxes, confidence[kept], cfg['max_pairs'], cfg['require_overlap'])
        found = scores[kept[pairs[:, 0]], kept[pairs[:, 1]]]
        return image_graph(boxes, probs, pairs, found, self.model.protocol, cfg)

    def _objects(self, states: QueryStates) -> ObjectContext:
        batch, queries = states.hidden.shape[:2]
        return ObjectContext(self.model.relation_head.object_features(states), [queries] * batch)
