"""Relations of boxes, read from the RoI maps of objects and pairs."""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import torch
from mmdet.registry import TASK_UTILS
from mmdet.structures import SampleList
from mmengine.structures import InstanceData
from torch import Tensor, nn

from ..heads.relation_head import GraphObjects
from ..task_modules.geometry import union_boxes
from ..task_modules.pair_sampler import candidate_pairs, match_objects
from .ground_truth import given_boxes, relations_of
from .postprocess import ObjectContext, SceneGraphOutput, split_graphs


class RoIRelations:
    """Runs a :class:`RelationHead` on the boxes of a :class:`SceneGraphDetector`.

    Args:
        model: The model. Its ``relation_head`` reads RoI maps.
    """

    #: Whether a detector without losses of its own can train through its feature maps.
    trains_features = True

    def __init__(self, model: Any) -> None:
        self.model = model
        self.pair_sampler = TASK_UTILS.build(model.relation_train_cfg['sampler'])

    @property
    def object_limit(self) -> tuple[str, int | None]:
        """Config key and value of the number of objects of an image in SGDet; None: no limit."""
        return 'model.test_cfg.relation.max_objects', self.model.relation_test_cfg['max_objects']

    def loss(
        self,
        maps: tuple[Tensor, ...],
        x: tuple[Tensor, ...],
        batch_inputs: Tensor,
        samples: SampleList,
    ) -> tuple[dict[str, Any], dict[str, Any], ObjectContext]:
        """Losses of the detector and of the relation head.

        Args:
            maps: Feature maps of the detector.
            x: Feature maps of the heads.
            batch_inputs: (B, 3, H, W).
            samples: With the ground truth.

        Returns:
            Losses of the detector, empty if it does not train; losses of the head; and the objects
            for the scene head.
        """
        model = self.model
        losses: dict[str, Any] = {}
        proposals = None
        if model.detector_loss:
            losses, proposals = model.adapter.losses(maps, batch_inputs, samples)
        found = self.detect(maps, batch_inputs, samples, proposals)
        boxes = self._train_boxes(samples, found)
        matched, obj_labels = self._match(boxes, samples)
        head = model.relation_head
        pairs, predicate_labels = [], []
        for match, sample in zip(matched, samples, strict=True):
            relations = relations_of(sample)
            drawn = self.pair_sampler.sample(
                match, relations.pairs, relations.labels, head.num_predicates
            )
            pairs.append(drawn[0])
            predicate_labels.append(drawn[1])
        labels = torch.cat(obj_labels)
        known = torch.where(labels < head.num_classes, labels, -1)
        output = self._relate(x, boxes, samples, pairs, known, found)
        heads = head.loss(output.logits, labels, torch.cat(predicate_labels))
        return losses, heads, ObjectContext(output.logits.obj_ctx, output.objects.num_objs)

    def predict(
        self,
        maps: tuple[Tensor, ...],
        x: tuple[Tensor, ...],
        batch_inputs: Tensor,
        samples: SampleList,
    ) -> tuple[list[tuple[InstanceData, InstanceData]], ObjectContext]:
        """Objects and relations of each image, and the objects for the scene head.

        Args: see :meth:`loss`.

        Raises:
            ValueError: A data sample lacks boxes or labels that the protocol needs.
        """
        model = self.model
        found, output = self._predicted(maps, x, batch_inputs, samples)
        masks = None
        if not model.protocol.has_boxes:
            assert found is not None  # SGDet detects
            labels = output.logits.objects[:, :-1].argmax(dim=1).split(output.objects.num_objs)
            masks = model.adapter.masks(maps, samples, found, labels)
        graphs = split_graphs(output, model.protocol, model.relation_test_cfg, masks)
        return graphs, ObjectContext(output.logits.obj_ctx, output.objects.num_objs)

    def logits(
        self,
        maps: tuple[Tensor, ...],
        x: tuple[Tensor, ...],
        batch_inputs: Tensor,
        samples: SampleList,
    ) -> tuple[Tensor, ...]:
        """Raw logits of objects (N, C + 1) and pairs (M, P + 1)."""
        output = self._predicted(maps, x, batch_inputs, samples)[1]
        return output.logits.objects, output.logits.predicates

    def _predicted(
        self,
        maps: tuple[Tensor, ...],
        x: tuple[Tensor, ...],
        batch_inputs: Tensor,
        samples: SampleList,
    ) -> tuple[list[InstanceData] | None, SceneGraphOutput]:
        """Detections, and the output of the relation head for the boxes of the protocol."""
        protocol = self.model.protocol
        boxes = given_boxes(samples, protocol) if protocol.has_boxes else None
        found = self.detect(maps, batch_inputs, samples)
        if boxes is None:
            assert found is not None  # SGDet detects
            boxes = [result.bboxes for result in found]
        return found, self._relate(x, boxes, samples, found=found)

    def detect(
        self,
        maps: tuple[Tensor, ...],
        batch_inputs: Tensor,
        samples: SampleList,
        proposals: list[InstanceData] | None = None,
    ) -> list[InstanceData] | None:
        """Detections of each image, in pixels of the network's input; None if not needed."""
        model = self.model
        protocol = model.protocol
        if protocol.has_labels or (protocol.has_boxes and model.adapter.classifies_boxes):
            return None
        found = model.adapter.detect(maps, batch_inputs, samples, proposals)
        most = model.relation_test_cfg['max_objects']
        if model.training or protocol.has_boxes:
            for result in found:
                result.pop('masks', None)  # large, and not used
        return [result if protocol.has_boxes else result[:most] for result in found]

    def _train_boxes(self, samples: SampleList, found: list[InstanceData] | None) -> list[Tensor]:
        given = [sample.gt_instances.bboxes for sample in samples]
        if self.model.protocol.has_boxes:
            return given
        assert found is not None
        if not self.model.relation_train_cfg['add_gt']:
            return [result.bboxes for result in found]
        return [torch.cat([b, result.bboxes]) for b, result in zip(given, found, strict=True)]

    def _match(self, boxes: list[Tensor], samples: SampleList) -> tuple[list[Tensor], list[Tensor]]:
        model = self.model
        if model.protocol.has_boxes:
            # Match by position, because two equal boxes are still two objects.
            return (
                [torch.arange(len(b), device=b.device) for b in boxes],
                [sample.gt_instances.labels for sample in samples],
            )
        matches = [
            match_objects(
                b,
                sample.gt_instances.bboxes,
                sample.gt_instances.labels,
                model.relation_head.num_classes,
                model.relation_train_cfg['iou_thr'],
            )
            for b, sample in zip(boxes, samples, strict=True)
        ]
        return [m[0] for m in matches], [m[1] for m in matches]

    def _objects(
        self,
        maps: Tensor,
        boxes: list[Tensor],
        samples: SampleList,
        found: list[InstanceData] | None,
    ) -> GraphObjects:
        """Input of the relation head: objects, with the ground truth that the protocol gives."""
        model = self.model
        num_classes = model.relation_head.num_classes
        if model.protocol.has_labels:
            labels = torch.cat([sample.gt_instances.labels for sample in samples])
            probs = nn.functional.one_hot(labels, num_classes + 1).to(maps.dtype)
        else:
            num_given = [len(b) for b in boxes]
            if not model.protocol.has_boxes:
                assert found is not None
                num_given = [n - len(r) for n, r in zip(num_given, found, strict=True)]
            probs = model.adapter.class_probs(maps, boxes, found, num_given, num_classes)
        confidence = probs[:, :-1].amax(dim=1, keepdim=True)
        sizes = [
            b.new_tensor(sample.img_shape[:2]).expand(len(b), 2)
            for b, sample in zip(boxes, samples, strict=True)
        ]
        return GraphObjects(
            torch.cat([torch.cat(boxes), confidence.to(boxes[0].dtype)], dim=1),
            probs,
            [len(b) for b in boxes],
            torch.cat(sizes),
        )

    def _relate(
        self,
        x: tuple[Tensor, ...],
        boxes: list[Tensor],
        samples: SampleList,
        pairs: list[Tensor] | None = None,
        labels: Tensor | None = None,
        found: list[InstanceData] | None = None,
    ) -> SceneGraphOutput:
        """Run the relation head.

        Args:
            x: Feature maps.
            boxes: (n, 4) boxes of each image.
            samples: Data samples.
            pairs: (m, 2) pairs of each image, as rows of its boxes. None: all pairs that
                ``test_cfg.relation`` allows.
            labels: (N,) known labels for the frequency bias, -1 for unknown; see
                :meth:`RelationHead.forward`.
            found: Output of :meth:`detect`.
        """
        model = self.model
        maps = model.roi_maps(x, boxes)
        objects = self._objects(maps, boxes, samples, found)
        if pairs is None:
            scores = objects.boxes[:, 4].split(objects.num_objs)
            cfg = model.relation_test_cfg
            options = {key: cfg[key] for key in ('max_pairs', 'require_overlap')}
            pairs = [candidate_pairs(b, s, **options) for b, s in zip(boxes, scores, strict=True)]
        around = [union_boxes(b, p) for b, p in zip(boxes, pairs, strict=True)]
        starts = accumulate(objects.num_objs, initial=0)
        joined = torch.cat([p + start for p, start in zip(pairs, starts, strict=False)])
        logits = model.relation_head(maps, model.roi_maps(x, around), objects, joined, labels)
        return SceneGraphOutput(objects, joined, [len(p) for p in pairs], logits)
