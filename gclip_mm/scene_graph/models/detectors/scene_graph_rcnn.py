"""Two-stage detector that also predicts relations and the scene."""

from __future__ import annotations

from typing import Any

from mmdet.models.detectors import TwoStageDetector
from mmdet.registry import MODELS
from torch import Tensor, nn

from .adapters import TwoStageAdapter, runs_one_box_head
from .checkpoint_keys import fitting_keys
from .scene_graph_detector import SceneGraphDetector

# Modules of the detector; all others belong to the scene graph.
_DETECTOR_PARTS = ('backbone', 'neck', 'rpn_head', 'roi_head')


@MODELS.register_module()
class SceneGraphRCNN(SceneGraphDetector, TwoStageDetector):
    """A :class:`SceneGraphDetector` that has the parts of a Faster R-CNN as its own.

    Gives the same results as ``SceneGraphDetector(detector=dict(type='FasterRCNN', ...))``, and
    each loads the checkpoints of the other. Consists of any backbone, neck, RPN and
    ``StandardRoIHead`` of MMDetection (Faster or Mask R-CNN, whose masks are predicted in SGDet), a
    relation head and a scene head. Parameters are named as in MMDetection.

    Args:
        backbone, neck, rpn_head, roi_head, data_preprocessor, init_cfg: As for
            :class:`mmdet.models.TwoStageDetector`.
        relation_head, scene_head, protocol, freeze_detector, detector_loss: As for
            :class:`SceneGraphDetector`. A detector that is not frozen and not trained on its own
            losses gets gradients through the features only; RPN and box head do not change.
        train_cfg: As for Faster R-CNN, and ``relation`` as for :class:`SceneGraphDetector`.
        test_cfg: As for Faster R-CNN, and ``relation`` as for :class:`SceneGraphDetector`.

    Raises:
        ValueError: As for :class:`SceneGraphDetector`; and a RoI head with several box heads.

    Example:
        >>> model = dict(
        ...     type='SceneGraphRCNN', protocol='predcls', freeze_detector=True,
        ...     relation_head=dict(
        ...         type='RelationHead', num_predicates=50,
        ...         context=dict(type='RNNContext', cell='lstm'),
        ...         frequency_bias=dict(type='FrequencyBias')),
        ...     scene_head=dict(type='SceneHead', num_scenes=6, in_channels=256))
    """

    detector_key = 'model.'

    def __init__(
        self,
        backbone: dict,
        rpn_head: dict,
        roi_head: dict,
        relation_head: dict,
        scene_head: dict | None = None,
        neck: dict | None = None,
        protocol: str = 'sgdet',
        freeze_detector: bool = True,
        detector_loss: bool | None = None,
        train_cfg: dict | None = None,
        test_cfg: dict | None = None,
        data_preprocessor: dict | None = None,
        init_cfg: dict | list | None = None,
    ) -> None:
        TwoStageDetector.__init__(
            self,
            backbone=backbone,
            neck=neck,
            rpn_head=rpn_head,
            roi_head=roi_head,
            train_cfg=train_cfg,
            test_cfg=test_cfg,
            data_preprocessor=data_preprocessor,
            init_cfg=init_cfg,
        )
        if not runs_one_box_head(self):
            raise ValueError(
                'SceneGraphRCNN needs a roi_head with one box head, such as StandardRoIHead; got '
                f'{type(self.roi_head).__name__}. SceneGraphDetector takes any detector'
            )
        self._add_graph(TwoStageAdapter(self), relation_head, scene_head, protocol)
        self._set_training(freeze_detector, detector_loss)

    @property
    def detector_parts(self) -> list[nn.Module]:
        """The existing ones of backbone, neck, RPN and RoI head."""
        return [getattr(self, name) for name in _DETECTOR_PARTS if hasattr(self, name)]

    def fitting_keys(self, keys: Any) -> dict[str, str]:
        """Map keys of a checkpoint, which may be of a SceneGraphDetector, to those of the model."""
        return fitting_keys(keys, nested=False)

    def _plain_features(self, batch_inputs: Tensor) -> tuple[Tensor, ...]:
        return TwoStageDetector.extract_feat(self, batch_inputs)
