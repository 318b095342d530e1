"""Any detector of MMDetection that also predicts relations and the scene."""

from __future__ import annotations

from typing import Any

import torch
from mmdet.models.detectors.base import BaseDetector
from mmdet.registry import MODELS
from mmdet.structures import SampleList
from mmdet.structures.bbox import bbox2roi
from torch import Tensor, nn

from ..protocol import SceneGraphProtocol
from .adapters import DetectorAdapter, adapter_of
from .assembly import (
    check_own_cfg,
    complete_query_head,
    complete_relation_head,
    reads_queries,
    relation_cfg,
    roi_extractor_of,
)
from .checkpoint_keys import check_detector_weights, fitting_keys
from .feature_maps import check_feature_maps
from .ground_truth import scene_label_of
from .postprocess import ObjectContext, write_predictions
from .query_relations import QueryRelations
from .roi_relations import RoIRelations


@MODELS.register_module()
class SceneGraphDetector(BaseDetector):
    """Predicts objects, their relations and the scene of an image, with any detector.

    Boxes and labels come from the detector's own ``predict``, and RoI maps from the feature maps of
    its neck (of its backbone if it has no neck, such as Mask2Former). A relation head and a scene
    head use both. ``load_from`` loads a checkpoint of the plain detector as it is, or one of a
    :class:`SceneGraphRCNN` if the detector is a Faster R-CNN.

    ``protocol`` selects the input of the heads: ground-truth boxes and labels (PredCls),
    ground-truth boxes (SGCls) or detections (SGDet). Ground-truth boxes come from
    ``data_sample.gt_instances``, in pixels of the network's input, in training and testing.
    Ground-truth relations are used for the loss only, and the detector sees no ground truth when it
    predicts.

    A two-stage detector with one box head classifies given boxes with it. With other detectors, a
    given box has label and score of the best detection on it, if there is one. In both cases the
    relation head refines the labels. In SGDet, a detector with masks also gives those of the
    objects.

    Args:
        detector: Config of a detector, for example ``{{_base_.model}}``.
        relation_head: Config of a :class:`RelationHead`; ``num_classes``, ``in_channels`` and
            ``roi_size`` default to those of the detector and of the RoI extractor. Or of an
            :class:`EGTRHead`, which reads the decoder of a DETR, DeformableDETR or DINO: then
            without ``roi_extractor`` and ``graph_neck``, and ``protocol='sgdet'`` only.
        roi_extractor: Config of a RoI extractor on the feature maps. None: the detector's own,
            which only two-stage detectors have.
        graph_neck: Config of a neck between the detector's feature maps and both heads, trained
            with them. For maps with different numbers of channels, as those of a backbone are, or
            for detectors with a single coarse map, such as DETR.
        scene_head: Config of a :class:`SceneHead`. None: no scene prediction.
        protocol: ``'predcls'``, ``'sgcls'`` or ``'sgdet'``.
        freeze_detector: Disable gradients of the detector and keep its modules, including batch
            normalisation and dropout, in eval mode while the heads train.
        detector_loss: Also train the detector on its own losses. If False, a detector that is not
            frozen gets gradients through the features only, and its other parts do not change.
            Defaults to ``not freeze_detector``.
        train_cfg: ``relation=dict(sampler=..., iou_thr=0.5, add_gt=True)``: the
            :class:`PairSampler`; the minimum IoU of a detection and its ground-truth object;
            whether ground-truth boxes are added to the detections in SGDet. An EGTRHead has none
            of these.
        test_cfg: ``relation=dict(max_objects=80, max_pairs=2048, require_overlap=False,
            nms_iou_thr=0.5, max_relations=None)``: maximum number of objects of an image in SGDet;
            maximum number of pairs of an image; whether to use pairs of overlapping boxes only; IoU
            of the per-class NMS after refinement, None for no NMS; maximum number of pairs in the
            output, None for all. For an EGTRHead the defaults are those of its paper: all queries,
            no NMS, and ``max_relations=2048`` to save memory.
        data_preprocessor: As for every detector. None: that of ``detector``.
        init_cfg: Initialisation, see MMEngine.

    Raises:
        ValueError: An unknown key or protocol, a loss on a frozen detector, no RoI extractor, or
            inconsistent sizes of the heads. The message names the key. On loading: a checkpoint of
            another detector. On use: a detector that needs what the data or the config lack.

    Example:
        >>> # _base_ = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'
        >>> model = dict(
        ...     _delete_=True, type='SceneGraphDetector', protocol='sgdet', freeze_detector=True,
        ...     detector={{_base_.model}},
        ...     roi_extractor=dict(
        ...         type='SingleRoIExtractor', out_channels=256, featmap_strides=[8, 16, 32],
        ...         roi_layer=dict(type='RoIAlign', output_size=7, sampling_ratio=0)),
        ...     relation_head=dict(
        ...         type='RelationHead', num_predicates=50,
        ...         context=dict(type='RNNContext', cell='lstm'),
        ...         frequency_bias=dict(type='FrequencyBias')))
    """

    adapter: DetectorAdapter
    #: Config key of the detector, for error messages.
    detector_key = 'model.detector.'

    def __init__(
        self,
        detector: dict,
        relation_head: dict,
        roi_extractor: dict | None = None,
        graph_neck: dict | None = None,
        scene_head: dict | None = None,
        protocol: str = 'sgdet',
        freeze_detector: bool = True,
        detector_loss: bool | None = None,
        train_cfg: dict | None = None,
        test_cfg: dict | None = None,
        data_preprocessor: dict | None = None,
        init_cfg: dict | list | None = None,
    ) -> None:
        check_own_cfg('train_cfg', train_cfg)
        check_own_cfg('test_cfg', test_cfg)
        built = MODELS.build(detector)
        super().__init__(
            data_preprocessor=data_preprocessor or built.data_preprocessor, init_cfg=init_cfg
        )
        self.detector = built
        self.train_cfg = train_cfg
        self.test_cfg = test_cfg
        if graph_neck is not None and roi_extractor is None:
            raise ValueError('graph_neck needs a roi_extractor on its feature maps')
        if roi_extractor is not None:
            self.roi_extractor = MODELS.build(roi_extractor)
        if graph_neck is not None:
            self.graph_neck = MODELS.build(graph_neck)
        adapter = adapter_of(built, own_maps=roi_extractor is None)
        self._add_graph(adapter, relation_head, scene_head, protocol)
        self._set_training(freeze_detector, detector_loss)

    def _add_graph(
        self,
        adapter: DetectorAdapter,
        relation_head: dict,
        scene_head: dict | None,
        protocol: str,
    ) -> None:
        """Build the heads on an existing detector."""
        self.adapter = adapter
        self.protocol = SceneGraphProtocol.parse(protocol)
        queries = reads_queries(relation_head)
        self.relation_train_cfg = relation_cfg('train_cfg', self.train_cfg, queries)
        self.relation_test_cfg = relation_cfg('test_cfg', self.test_cfg, queries)
        if queries:
            given = [key for key in ('roi_extractor', 'graph_neck') if hasattr(self, key)]
            relation_head = complete_query_head(relation_head, adapter, given, self.protocol)
        else:
            relation_head = complete_relation_head(
                relation_head, adapter, self._roi_extractor(), self.protocol
            )
        self.relation_head = MODELS.build(relation_head)
        self.relations: RoIRelations | QueryRelations = (
            QueryRelations(self) if queries else RoIRelations(self)
        )
        self.scene_head = None
        if scene_head is not None:
            obj_ctx_dim = self.relation_head.obj_ctx_dim
            self.scene_head = MODELS.build({**scene_head, 'obj_ctx_dim': obj_ctx_dim})

    def _set_training(self, freeze_detector: bool, detector_loss: bool | None) -> None:
        """Set which parts of the detector train."""
        if detector_loss is None:
            detector_loss = not freeze_detector
        if freeze_detector and detector_loss:
            raise ValueError('detector_loss=True needs freeze_detector=False')
        if not (freeze_detector or detector_loss or self.relations.trains_features):
            raise ValueError(
                f'{type(self.relation_head).__name__} reads the decoder of the detector, which '
                'has to train on its own losses too: set detector_loss=True, or '
                'freeze_detector=True'
            )
        self.freeze_detector = freeze_detector
        self.detector_loss = detector_loss
        if detector_loss:
            return
        used = [] if freeze_detector else self.adapter.feature_modules()
        trained = {id(param) for module in used for param in module.parameters()}
        for part in self.detector_parts:
            for param in part.parameters():
                if id(param) not in trained:
                    param.requires_grad_(False)

    def set_protocol(self, protocol: str | SceneGraphProtocol) -> None:
        """Predict under another protocol than that of the config.

        Raises:
            ValueError: The protocol is unknown, or the relation head does not support it.
        """
        wanted = SceneGraphProtocol.parse(protocol)
        self.relation_head.protocol = wanted  # refuses first
        self.protocol = wanted

    @property
    def detector_parts(self) -> list[nn.Module]:
        """The modules of the detector; all others belong to the scene graph."""
        return [self.detector]

    def train(self, mode: bool = True) -> SceneGraphDetector:
        """Set the mode; a frozen detector stays in eval mode."""
        super().train(mode)
        if self.freeze_detector:
            for module in self.detector_parts:
                module.eval()
        return self

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: Any) -> None:
        ours = {key.removeprefix(prefix): key for key in state_dict if key.startswith(prefix)}
        fitting = self.fitting_keys(ours)
        for key, new in fitting.items():
            if new != key:
                state_dict[prefix + new] = state_dict.pop(ours[key])
        theirs = {new: state_dict[prefix + new] for new in fitting.values()}
        check_detector_weights(theirs, self.state_dict(), self.freeze_detector, self.adapter.name)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def fitting_keys(self, keys: Any) -> dict[str, str]:
        """Map keys of a checkpoint, which may be of a plain detector, to those of this model."""
        return fitting_keys(keys, nested=True)

    # ---- features ----------------------------------------------------------------------------

    def extract_feat(self, batch_inputs: Tensor) -> tuple[Tensor, ...]:
        """Feature maps (B, C, H, W) of both heads, without gradient in a frozen detector."""
        return self._graph_maps(self._detector_maps(batch_inputs), batch_inputs)

    def _detector_maps(self, batch_inputs: Tensor) -> tuple[Tensor, ...]:
        """Feature maps of the detector, without gradient if it is frozen."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.freeze_detector):
            feats = self._plain_features(batch_inputs)
        # MMCV's RoIAlign does not support bfloat16, which autocast may produce.
        return tuple(f.float() if f.dtype == torch.bfloat16 else f for f in feats)

    def _plain_features(self, batch_inputs: Tensor) -> tuple[Tensor, ...]:
        return self.detector.extract_feat(batch_inputs)

    def _graph_maps(self, maps: tuple[Tensor, ...], batch_inputs: Tensor) -> tuple[Tensor, ...]:
        """Feature maps of the heads, from those of the detector."""
        if hasattr(self, 'graph_neck'):
            maps = tuple(self.graph_neck(maps))
            maps = tuple(f.float() if f.dtype == torch.bfloat16 else f for f in maps)
        if hasattr(self, 'roi_extractor'):
            check_feature_maps(maps, batch_inputs, self.roi_extractor, self.adapter.name)
        return maps

    def _roi_extractor(self) -> Any:
        return roi_extractor_of(self.adapter, getattr(self, 'roi_extractor', None))

    def roi_maps(self, x: tuple[Tensor, ...], boxes: list[Tensor]) -> Tensor:
        """RoI maps (N, C, S, S) of all boxes, from feature maps of the heads."""
        extractor = self._roi_extractor()
        maps = extractor(x[: extractor.num_inputs], bbox2roi(boxes))
        changed = extractor is self.adapter.roi_extractor and self.adapter.shared_head is not None
        return self.adapter.shared_head(maps) if changed else maps

    # ---- training ----------------------------------------------------------------------------

    def loss(self, batch_inputs: Tensor, batch_data_samples: SampleList) -> dict:
        """Compute the losses of detector, relations and scene.

        Args:
            batch_inputs: (B, 3, H, W).
            batch_data_samples: With ``gt_instances``, ``gt_relations`` and, for a scene head,
                ``gt_scene`` in images with a scene label; and with what the detector trains on,
                such as masks, if it is trained on its own losses.

        Returns:
            Losses, and accuracies in percent. Every trainable parameter is in the graph of
            ``loss_predicate``; its gradient is zero if the batch has no pair.

        Raises:
            ValueError: The detector has a loss with the name of one of the heads.
        """
        maps = self._detector_maps(batch_inputs)
        x = self._graph_maps(maps, batch_inputs)
        losses, heads, objects = self.relations.loss(maps, x, batch_inputs, batch_data_samples)
        if self.scene_head is not None:
            scene_logits = self._scene(x, objects, batch_data_samples)
            scenes = torch.cat([scene_label_of(s, scene_logits.device) for s in batch_data_samples])
            heads.update(self.scene_head.loss(scene_logits, scenes))
        twice = sorted(set(losses) & set(heads))
        if twice:
            raise ValueError(f'a {self.adapter.name} has a loss {twice[0]!r}, as the heads have')
        losses.update(heads)
        # Otherwise a process whose batch has no pair would have parameters without gradients, and
        # DistributedDataParallel would wait for them.
        losses['loss_predicate'] = losses['loss_predicate'] + sum(
            param.flatten()[0] * 0.0 for param in self.parameters() if param.requires_grad
        )
        return losses

    def _scene(self, x: tuple[Tensor, ...], objects: ObjectContext, samples: SampleList) -> Tensor:
        assert self.scene_head is not None  # callers check
        height, width = samples[0].batch_input_shape
        valid = [(s.img_shape[0] / height, s.img_shape[1] / width) for s in samples]
        return self.scene_head(x, valid, objects.features, objects.counts)

    # ---- testing -----------------------------------------------------------------------------

    def predict(
        self, batch_inputs: Tensor, batch_data_samples: SampleList, rescale: bool = True
    ) -> SampleList:
        """Predict the scene graphs of a batch.

        Args:
            batch_inputs: (B, 3, H, W).
            batch_data_samples: With ``gt_instances.bboxes`` in SGCls, and also
                ``gt_instances.labels`` in PredCls.
            rescale: Return boxes in pixels of the original image.

        Returns:
            The data samples, with ``pred_instances`` (``bboxes`` (n, 4), ``labels`` (n,),
            ``scores`` (n,); in SGDet, of a detector with masks, also ``masks`` (n, H, W) bool),
            ``pred_relations`` (``pairs`` (m, 2), indices of subject and object in
            ``pred_instances``, and ``scores`` (m, P)) and, with a scene head, ``pred_scene``
            (``score`` (S,), ``label`` (1,)).

        Raises:
            ValueError: A data sample lacks boxes or labels that the protocol needs, or the detector
                cannot predict.
        """
        maps = self._detector_maps(batch_inputs)
        x = self._graph_maps(maps, batch_inputs)
        graphs, objects = self.relations.predict(maps, x, batch_inputs, batch_data_samples)
        scene_logits = None
        if self.scene_head is not None:
            scene_logits = self._scene(x, objects, batch_data_samples)
        return write_predictions(batch_data_samples, graphs, scene_logits, rescale)

    def _forward(self, batch_inputs: Tensor, batch_data_samples: SampleList) -> tuple[Tensor, ...]:
        """Raw logits of objects and of pairs."""
        maps = self._detector_maps(batch_inputs)
        x = self._graph_maps(maps, batch_inputs)
        return self.relations.logits(maps, x, batch_inputs, batch_data_samples)
