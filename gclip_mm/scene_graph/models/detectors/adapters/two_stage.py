"""Adapter for two-stage detectors whose RoI head runs one box head on RoI maps."""

from __future__ import annotations

import copy
from typing import Any

import torch
from mmdet.models.detectors import TwoStageDetector
from mmdet.models.roi_heads import StandardRoIHead
from mmdet.structures import SampleList
from mmengine.structures import InstanceData
from torch import Tensor, nn

from .base import DetectorAdapter
from .running import evaluating


def runs_one_box_head(detector: nn.Module) -> bool:
    """Whether RoI maps of the detector can be given to its box head.

    Not so for cascades and for RoI heads that give their box head something else, such as
    DoubleHeadRoIHead.
    """
    head = getattr(detector, 'roi_head', None)
    return (
        isinstance(head, StandardRoIHead)
        and type(head)._bbox_forward is StandardRoIHead._bbox_forward
        and not isinstance(head.bbox_head, nn.ModuleList)
    )


class TwoStageAdapter(DetectorAdapter):
    """Runs RPN and RoI head one after the other, and classifies boxes with the box head.

    Masks come from the mask head, if there is one, for the objects of the graph and their refined
    labels. Proposals come from the RPN, or from the data samples for a detector
    without RPN.

    Args:
        detector: A two-stage detector for which :func:`runs_one_box_head` holds.
        plain_loss: Whether its losses are those of RPN and RoI head. Then detections come from the
            proposals that the losses were computed on.
        own_maps: Whether the RoI maps of the scene graph are those of the detector's extractor, so
            that its box head can classify them.
    """

    def __init__(
        self, detector: TwoStageDetector, plain_loss: bool = True, own_maps: bool = True
    ) -> None:
        super().__init__(detector, own_maps)
        self.plain_loss = plain_loss

    @property
    def classifies_boxes(self) -> bool:
        """Whether the box head can classify the RoI maps of the scene graph."""
        return self.own_maps

    def losses(
        self, x: tuple[Tensor, ...], batch_inputs: Tensor, samples: SampleList
    ) -> tuple[dict[str, Any], list[InstanceData] | None]:
        """Losses of RPN and RoI head as in Faster R-CNN, and the proposals."""
        if not self.plain_loss:
            return super().losses(x, batch_inputs, samples)
        losses: dict[str, Any] = {}
        if self.detector.with_rpn:
            losses, proposals = self._rpn_losses(x, samples)
        else:
            proposals = self._proposals(x, samples)
        # Pass copies, because the RoI head removes the boxes from its input.
        losses.update(
            self.detector.roi_head.loss(
                x, [InstanceData(bboxes=p.bboxes) for p in proposals], samples
            )
        )
        return losses, proposals

    def _rpn_losses(
        self, x: tuple[Tensor, ...], samples: SampleList
    ) -> tuple[dict[str, Any], list[InstanceData]]:
        rpn_samples = copy.deepcopy(samples)
        for sample in rpn_samples:
            # The RPN treats every object as class 0.
            sample.gt_instances.labels = torch.zeros_like(sample.gt_instances.labels)
        detector = self.detector
        proposal_cfg = detector.train_cfg.get('rpn_proposal', detector.test_cfg.rpn)
        losses, proposals = detector.rpn_head.loss_and_predict(
            x, rpn_samples, proposal_cfg=proposal_cfg
        )
        return {k if 'rpn' in k else f'rpn_{k}': v for k, v in losses.items()}, proposals

    def _proposals(self, x: tuple[Tensor, ...], samples: SampleList) -> list[InstanceData]:
        if self.detector.with_rpn:
            return self.detector.rpn_head.predict(x, samples, rescale=False)
        for sample in samples:
            if sample.get('proposals') is None:
                raise ValueError(
                    f'{self.name} has no RPN, and {sample.get("img_path", "an image")} has no '
                    "proposals: set the data set's proposal_file and add "
                    "dict(type='LoadProposals') to the pipeline"
                )
        return [sample.proposals for sample in samples]

    @torch.no_grad()
    def detect(
        self,
        x: tuple[Tensor, ...],
        batch_inputs: Tensor,
        samples: SampleList,
        proposals: list[InstanceData] | None = None,
    ) -> list[InstanceData]:
        """Detections of each image, as the box head predicts them on the proposals."""
        head = self.detector.roi_head
        with evaluating(head):
            if proposals is None:
                proposals = self._proposals(x, samples)
            metas = [sample.metainfo for sample in samples]
            return head.predict_bbox(
                x, metas, proposals, self.detector.test_cfg.rcnn, rescale=False
            )

    @torch.no_grad()
    def masks(
        self,
        x: tuple[Tensor, ...],
        samples: SampleList,
        found: list[InstanceData],
        labels: list[Tensor],
    ) -> list[Tensor] | None:
        """Masks (n, H, W) bool of the mask head for boxes and refined labels, or None."""
        head = self.detector.roi_head
        if not head.with_mask:
            return None
        # Without scores: the head of Mask Scoring R-CNN would change them.
        objects = [
            InstanceData(bboxes=result.bboxes, labels=n)
            for result, n in zip(found, labels, strict=True)
        ]
        # Masks are pasted into the original image, so the input is passed off as one.
        metas = [
            {**sample.metainfo, 'ori_shape': sample.img_shape, 'scale_factor': (1.0, 1.0)}
            for sample in samples
        ]
        with evaluating(head):
            objects = head.predict_mask(x, metas, objects, rescale=True)
        return [result.masks.bool() for result in objects]

    def class_probs(
        self,
        maps: Tensor,
        boxes: list[Tensor],
        found: list[InstanceData] | None,
        num_given: list[int],
        num_classes: int,
    ) -> Tensor:
        """Probabilities (N, C + 1) of the box head on the RoI maps."""
        if not self.classifies_boxes:
            return super().class_probs(maps, boxes, found, num_given, num_classes)
        head = self.detector.roi_head.bbox_head
        with torch.no_grad(), evaluating(head):
            scores = head(maps)[0]
            if head.custom_cls_channels:
                return head.loss_cls.get_activation(scores)
            return scores.softmax(dim=-1)
