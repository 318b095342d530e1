"""Adapter for any detector, through its ``loss`` and ``predict``."""

from __future__ import annotations

from typing import Any

import torch
from mmdet.structures import DetDataSample, SampleList
from mmdet.structures.bbox import get_box_tensor
from mmengine.structures import InstanceData
from torch import Tensor, nn

from .class_probs import given_probs, predicted_probs
from .running import evaluating, given_features

# Where MMDetection's detectors keep their number of classes. Panoptic heads also have classes
# without instances, which are not objects of a graph.
_CLASS_COUNTS = (
    'roi_head.bbox_head.num_classes',
    'panoptic_head.num_things_classes',
    'bbox_head.num_classes',
    'mask_head.num_classes',
)
# What such an error in ``predict`` means: something is missing in the data or in the config.
_MISSING = (AttributeError, AssertionError, KeyError, NotImplementedError, TypeError)
# Fields of a data sample that a detector may need to predict. Ground truth is not among them.
_INPUT_FIELDS = ('proposals',)


class DetectorAdapter:
    """Runs a detector on feature maps that were computed before.

    Args:
        detector: A detector of MMDetection.
        own_maps: Whether the RoI maps of the scene graph are those of the detector's extractor.
    """

    def __init__(self, detector: nn.Module, own_maps: bool = True) -> None:
        self.detector: Any = detector
        self.own_maps = own_maps

    @property
    def classifies_boxes(self) -> bool:
        """Whether the box head of the detector classifies given boxes from their RoI maps."""
        return False

    @property
    def name(self) -> str:
        """Class name of the detector, for error messages."""
        return type(self.detector).__name__

    @property
    def class_count(self) -> tuple[str, int] | None:
        """Config key and value of the number of object classes; None if it is not known."""
        for key in _CLASS_COUNTS:
            node: Any = self.detector
            for part in key.split('.'):
                node = node[0] if isinstance(node, nn.ModuleList) else node
                node = getattr(node, part, None)
            if isinstance(node, int):
                return key, node
        return None

    @property
    def roi_extractor(self) -> Any:
        """The RoI extractor of the detector, of the first stage if it has several; or None."""
        extractor = getattr(getattr(self.detector, 'roi_head', None), 'bbox_roi_extractor', None)
        return extractor[0] if isinstance(extractor, nn.ModuleList) else extractor

    @property
    def shared_head(self) -> Any:
        """The module that the detector runs on RoI maps before its box head, or None."""
        return getattr(getattr(self.detector, 'roi_head', None), 'shared_head', None)

    def feature_modules(self) -> list[nn.Module]:
        """The modules that the feature maps and RoI maps come from."""
        found = [getattr(self.detector, name, None) for name in ('backbone', 'neck')]
        if self.own_maps:
            found += [self.roi_extractor, self.shared_head]
        return [module for module in found if isinstance(module, nn.Module)]

    def losses(
        self, x: tuple[Tensor, ...], batch_inputs: Tensor, samples: SampleList
    ) -> tuple[dict[str, Any], list[InstanceData] | None]:
        """Losses of the detector, and its proposals if it has some.

        Args:
            x: Feature maps of ``batch_inputs``.
            batch_inputs: (B, 3, H, W).
            samples: With the ground truth that the detector trains on.
        """
        with given_features(self.detector, x):
            return dict(self.detector.loss(batch_inputs, samples)), None

    @torch.no_grad()
    def detect(
        self,
        x: tuple[Tensor, ...],
        batch_inputs: Tensor,
        samples: SampleList,
        proposals: list[InstanceData] | None = None,
    ) -> list[InstanceData]:
        """Detections of each image, best first, as the detector predicts them in eval mode.

        Args:
            x: Feature maps of ``batch_inputs``.
            batch_inputs: (B, 3, H, W).
            samples: Data samples. The detector does not see their ground truth.
            proposals: Output of :meth:`losses`.

        Returns:
            For each image ``bboxes`` (n, 4) in pixels of the network's input, ``labels`` (n,) int64
            and ``scores`` (n,); and ``masks`` (n, H, W) bool of the network's input if ``predict``
            gives masks.

        Raises:
            ValueError: ``predict`` fails or gives no boxes, because the data sample or the
                detector's config lacks something.
        """
        blind = [_without_truth(sample) for sample in samples]
        x = tuple(level.detach() for level in x)
        with evaluating(self.detector), given_features(self.detector, x):
            try:
                found = self.detector.predict(batch_inputs, blind, rescale=False)
            except _MISSING as error:
                raise ValueError(
                    f'{self.name}.predict failed: {type(error).__name__}: {error}. The data '
                    'samples or the config of the detector lack something that it needs to predict '
                    'boxes'
                ) from error
        return [self._instances(sample) for sample in found]

    def _instances(self, sample: DetDataSample) -> InstanceData:
        found = sample.get('pred_instances')
        missing = [k for k in ('bboxes', 'labels', 'scores') if found is None or k not in found]
        if missing:
            raise ValueError(
                f'{self.name}.predict gave no pred_instances.{missing[0]}, which SGDet and SGCls '
                'need. A MaskFormer or Mask2Former predicts instances with '
                'detector.test_cfg=dict(instance_on=True)'
            )
        boxes = get_box_tensor(found.bboxes).float()
        solid = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
        if len(boxes) and not solid.any() and 'masks' in found and bool(found.masks.any()):
            raise ValueError(
                f'{self.name}.predict gives masks without boxes, and a graph needs both'
            )
        order = torch.sort(found.scores[solid], descending=True, stable=True).indices
        result = InstanceData(
            bboxes=boxes[solid][order],
            labels=found.labels[solid][order],
            scores=found.scores[solid][order].float(),
        )
        if 'masks' in found:
            result.masks = found.masks[solid][order].bool()
        return result

    def masks(
        self,
        x: tuple[Tensor, ...],
        samples: SampleList,
        found: list[InstanceData],
        labels: list[Tensor],
    ) -> list[Tensor] | None:
        """Masks of detected objects.

        Args:
            x: Feature maps of the detector.
            samples: Data samples.
            found: Output of :meth:`detect`, or the first detections of each image.
            labels: (n,) int64 labels of each image after refinement, for detectors that predict
                the mask of a given box and class.

        Returns:
            For each image (n, H, W) bool in pixels of the network's input; None if the detector
            predicts boxes only.
        """
        if not all('masks' in result for result in found):
            return None
        return [result.masks for result in found]

    def class_probs(
        self,
        maps: Tensor,
        boxes: list[Tensor],
        found: list[InstanceData] | None,
        num_given: list[int],
        num_classes: int,
    ) -> Tensor:
        """Class probabilities of objects.

        Args:
            maps: (N, D, S, S) RoI maps of all boxes; for detectors that classify boxes.
            boxes: (n, 4) boxes of each image: ground truth, then detections.
            found: The detections of each image. They are needed for given boxes too, except for
                detectors that classify boxes.
            num_given: Number of ground-truth boxes of each image.
            num_classes: Object classes C.

        Returns:
            (N, C + 1), background last. Detections have the score of their label, and given boxes
            that of the best detection on them.
        """
        assert found is not None  # the model always detects for this adapter
        rows = []
        for image_boxes, result, given in zip(boxes, found, num_given, strict=True):
            rows.append(given_probs(image_boxes[:given], result, num_classes))
            if given < len(image_boxes):
                rows.append(predicted_probs(result, num_classes))
        return torch.cat(rows).to(maps.dtype)


def _without_truth(sample: DetDataSample) -> DetDataSample:
    """A data sample with the input of a detector, and without ground truth."""
    blind = DetDataSample(metainfo=sample.metainfo)
    for key in _INPUT_FIELDS:
        if key in sample:
            blind.set_data({key: sample.get(key)})
    return blind
