"""R-CNN: regions with CNN features."""

from __future__ import annotations

from mmdet.models.detectors import TwoStageDetector
from mmdet.registry import MODELS
from mmdet.structures import SampleList
from mmdet.utils import ConfigType, OptConfigType, OptMultiConfig
from torch import Tensor

from ..roi_heads import RegionRoIHead


@MODELS.register_module()
class RCNN(TwoStageDetector):
    """R-CNN: crops each precomputed proposal from the image and runs the CNN on every crop.

    The model trains end to end with a softmax over classes and background and with class-specific
    box regression. The paper instead fine-tunes a CNN this way and then trains linear SVMs and
    ridge regressions on its features. Proposals come from a proposal file, as in mmdet's Fast R-CNN
    (``proposal_file`` of the data set, ``LoadProposals`` in the pipeline);
    ``tools/dataset_converters/make_proposals.py`` creates one by selective search.

    Args:
        backbone (dict): The CNN, any registered backbone. If it has several outputs, the last one
            is used.
        roi_head (dict): A ``RegionRoIHead``.
        train_cfg (dict): Under ``rcnn``: assigner and sampler of regions.
        test_cfg (dict): Under ``rcnn``: score threshold and non-maximum suppression.
        neck (dict, optional): Module between backbone and head.
        data_preprocessor (dict, optional): Has to subtract the mean, because pixels outside the
            image are filled with 0.
        init_cfg (dict, optional): Initialisation of the weights.

    Raises:
        TypeError: ``roi_head`` is not a ``RegionRoIHead``.
        ValueError: A sample given to ``loss`` or ``predict`` has no proposals.

    Source: Girshick et al., "Rich feature hierarchies for accurate object detection and semantic
    segmentation", arXiv 1311.2524.

    Example: ``configs/rcnn/rcnn_r50_1x_coco.py``.
    """

    def __init__(
        self,
        backbone: ConfigType,
        roi_head: ConfigType,
        train_cfg: ConfigType,
        test_cfg: ConfigType,
        neck: OptConfigType = None,
        data_preprocessor: OptConfigType = None,
        init_cfg: OptMultiConfig = None,
    ) -> None:
        super().__init__(
            backbone=backbone,
            neck=neck,
            roi_head=roi_head,
            train_cfg=train_cfg,
            test_cfg=test_cfg,
            data_preprocessor=data_preprocessor,
            init_cfg=init_cfg,
        )
        if not isinstance(self.roi_head, RegionRoIHead):
            raise TypeError(
                f'RCNN needs a roi_head of type RegionRoIHead, got {type(self.roi_head).__name__}'
            )
        # A bound method is not a submodule, so the weights keep a single name, `backbone.*`.
        self.roi_head.region_network = self.region_features

    def extract_feat(self, batch_inputs: Tensor) -> tuple[Tensor]:
        """Return the images (B, 3, H, W); features are computed for each region."""
        return (batch_inputs,)

    def region_features(self, crops: Tensor) -> Tensor:
        """Features of warped regions.

        Args:
            crops (Tensor): Float (n, 3, h, w).

        Returns:
            Tensor: Float (n, C, h', w').
        """
        features = self.backbone(crops)
        if self.with_neck:
            features = self.neck(features)
        return features if isinstance(features, Tensor) else features[-1]

    def loss(self, batch_inputs: Tensor, batch_data_samples: SampleList) -> dict:
        """Compute ``loss_cls``, ``loss_bbox`` and the accuracy ``acc`` of a batch.

        Args:
            batch_inputs (Tensor): Normalised images, float (B, 3, H, W).
            batch_data_samples (list[DetDataSample]): ``gt_instances`` and ``proposals`` of each.
        """
        _require_proposals(batch_data_samples)
        return super().loss(batch_inputs, batch_data_samples)

    def predict(
        self, batch_inputs: Tensor, batch_data_samples: SampleList, rescale: bool = True
    ) -> SampleList:
        """Add ``pred_instances`` (boxes, scores, labels) to the samples.

        Args:
            batch_inputs (Tensor): Normalised images, float (B, 3, H, W).
            batch_data_samples (list[DetDataSample]): ``proposals`` of each.
            rescale (bool): Return boxes in pixels of the original image. Defaults to True.
        """
        _require_proposals(batch_data_samples)
        return super().predict(batch_inputs, batch_data_samples, rescale)

    def _forward(self, batch_inputs: Tensor, batch_data_samples: SampleList) -> tuple:
        _require_proposals(batch_data_samples)
        return super()._forward(batch_inputs, batch_data_samples)


def _require_proposals(batch_data_samples: SampleList) -> None:
    for sample in batch_data_samples or [None]:
        if sample is None or sample.get('proposals') is None:
            raise ValueError(
                f'R-CNN got no proposals for {sample.get("img_path") if sample else "an image"}: '
                'set proposal_file of the data set and add '
                "dict(type='LoadProposals') to the pipeline; "
                'tools/dataset_converters/make_proposals.py creates the file'
            )
