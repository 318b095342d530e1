"""Two-stage detector that also predicts relations and the scene."""

from __future__ import annotations

import copy
from itertools import accumulate
from typing import Any

import torch
from mmdet.models.detectors import TwoStageDetector
from mmdet.registry import MODELS, TASK_UTILS
from mmdet.structures import SampleList
from mmdet.structures.bbox import bbox2roi
from mmengine.structures import InstanceData
from torch import Tensor, nn

from ..heads.relation_head import GraphObjects
from ..protocol import SceneGraphProtocol
from ..task_modules.geometry import union_boxes
from ..task_modules.pair_sampler import candidate_pairs, match_objects
from .assembly import complete_relation_head, relation_cfg
from .ground_truth import given_boxes, relations_of, scene_label_of
from .postprocess import SceneGraphOutput, split_graphs, write_predictions

#: Modules of the detector; all others belong to the scene graph.
DETECTOR_PARTS = ('backbone', 'neck', 'rpn_head', 'roi_head')


@MODELS.register_module()
class SceneGraphRCNN(TwoStageDetector):
    """Predicts objects, their relations and the scene of an image.

    Consists of any backbone, neck, RPN and ``StandardRoIHead`` of MMDetection (Faster or Mask
    R-CNN, whose masks are predicted in SGDet), a relation head and a scene head. Parameters are
    named as in MMDetection, so ``load_from`` can load a trained detector.

    ``protocol`` selects the input of the heads: ground-truth boxes and labels (PredCls),
    ground-truth boxes (SGCls) or detections (SGDet). Ground-truth boxes come from
    ``data_sample.gt_instances``, in pixels of the network's input, in training and testing.
    Ground-truth relations are used for the loss only.

    Args:
        backbone, neck, rpn_head, roi_head, data_preprocessor, init_cfg: As for
            :class:`mmdet.models.TwoStageDetector`.
        relation_head: Config of a :class:`RelationHead`; ``num_classes``, ``in_channels`` and
            ``roi_size`` default to those of the RoI head.
        scene_head: Config of a :class:`SceneHead`. None: no scene prediction.
        protocol: ``'predcls'``, ``'sgcls'`` or ``'sgdet'``.
        freeze_detector: Disable gradients of the detector and keep its modules, including batch
            normalisation and dropout, in eval mode while the heads train.
        detector_loss: Also train the detector on its own losses. If False, a detector that is not
            frozen gets gradients through the features only, and RPN and box head do not change.
            Defaults to ``not freeze_detector``.
        train_cfg: As for Faster R-CNN, and ``relation=dict(sampler=..., iou_thr=0.5,
            add_gt=True)``: the :class:`PairSampler`; the minimum IoU of a detection and its
            ground-truth object; whether ground-truth boxes are added to the detections in SGDet.
        test_cfg: As for Faster R-CNN, and ``relation=dict(max_objects=80, max_pairs=2048,
            require_overlap=False, nms_iou_thr=0.5, max_relations=None)``: maximum number of objects
            of an image in SGDet; maximum number of pairs of an image; whether to use pairs of
            overlapping boxes only; IoU of the per-class NMS after refinement; maximum number of
            pairs in the output, None for all.

    Raises:
        ValueError: An unknown key or protocol, a loss on a frozen detector, or inconsistent sizes
            of the heads. The message names the key.

    Example:
        >>> model = dict(
        ...     type='SceneGraphRCNN', protocol='predcls', freeze_detector=True,
        ...     relation_head=dict(
        ...         type='RelationHead', num_predicates=50,
        ...         context=dict(type='RNNContext', cell='lstm'),
        ...         frequency_bias=dict(type='FrequencyBias')),
        ...     scene_head=dict(type='SceneHead', num_scenes=6, in_channels=256))
    """

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
        super().__init__(
            backbone=backbone,
            neck=neck,
            rpn_head=rpn_head,
            roi_head=roi_head,
            train_cfg=train_cfg,
            test_cfg=test_cfg,
            data_preprocessor=data_preprocessor,
            init_cfg=init_cfg,
        )
        self.protocol = SceneGraphProtocol.parse(protocol)
        self.relation_train_cfg = relation_cfg('train_cfg', train_cfg)
        self.relation_test_cfg = relation_cfg('test_cfg', test_cfg)
        self.pair_sampler = TASK_UTILS.build(self.relation_train_cfg['sampler'])
        relation_head = complete_relation_head(relation_head, self.roi_head, self.protocol)
        self.relation_head = MODELS.build(relation_head)
        self.scene_head = None
        if scene_head is not None:
            obj_ctx_dim = self.relation_head.obj_ctx_dim
            self.scene_head = MODELS.build({**scene_head, 'obj_ctx_dim': obj_ctx_dim})
        if detector_loss is None:
            detector_loss = not freeze_detector
        if freeze_detector and detector_loss:
            raise ValueError('detector_loss=True needs freeze_detector=False')
        self.freeze_detector = freeze_detector
        self.detector_loss = detector_loss
        self._freeze()

    @property
    def detector_parts(self) -> list[nn.Module]:
        """The existing ones of backbone, neck, RPN and RoI head."""
        return [getattr(self, name) for name in DETECTOR_PARTS if hasattr(self, name)]

    def _freeze(self) -> None:
        if self.freeze_detector:
            frozen = self.detector_parts
        elif not self.detector_loss:
            frozen = [self.rpn_head, self.roi_head.bbox_head]
            frozen += [self.roi_head.mask_head] if self.roi_head.with_mask else []
        else:
            frozen = []
        for module in frozen:
            module.requires_grad_(False)

    def train(self, mode: bool = True) -> SceneGraphRCNN:
        """Set the mode; a frozen detector stays in eval mode."""
        super().train(mode)
        if self.freeze_detector:
            for module in self.detector_parts:
                module.eval()
        return self

    def extract_feat(self, batch_inputs: Tensor) -> tuple[Tensor, ...]:
        """Feature maps (B, C, H, W) of each level, without gradient if the detector is frozen."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.freeze_detector):
            feats = super().extract_feat(batch_inputs)
        # MMCV's RoIAlign does not support bfloat16, which autocast may produce.
        return tuple(f.float() if f.dtype == torch.bfloat16 else f for f in feats)

    # ---- training ----------------------------------------------------------------------------

    def loss(self, batch_inputs: Tensor, batch_data_samples: SampleList) -> dict:
        """Compute the losses of detector, relations and scene.

        Args:
            batch_inputs: (B, 3, H, W).
            batch_data_samples: With ``gt_instances``, ``gt_relations`` and, for a scene head,
                ``gt_scene`` in images with a scene label.

        Returns:
            Losses, and accuracies in percent. Every trainable parameter is in the graph of
            ``loss_predicate``; its gradient is zero if the batch has no pair.
        """
        x = self.extract_feat(batch_inputs)
        losses: dict[str, Any] = {}
        proposals = None
        if self.detector_loss:
            losses, proposals = self._detector_loss(x, batch_data_samples)
        boxes = self._train_boxes(x, batch_data_samples, proposals)
        matched, obj_labels = self._match(boxes, batch_data_samples)
        pairs, predicate_labels = [], []
        for match, sample in zip(matched, batch_data_samples, strict=True):
            relations = relations_of(sample)
            drawn = self.pair_sampler.sample(
                match, relations.pairs, relations.labels, self.relation_head.num_predicates
            )
            pairs.append(drawn[0])
            predicate_labels.append(drawn[1])
        labels = torch.cat(obj_labels)
        known = torch.where(labels < self.relation_head.num_classes, labels, -1)
        output = self._relate(x, boxes, batch_data_samples, pairs, known)
        losses.update(self.relation_head.loss(output.logits, labels, torch.cat(predicate_labels)))
        if self.scene_head is not None:
            scene_logits = self._scene(x, output, batch_data_samples)
            scenes = torch.cat([scene_label_of(s, scene_logits.device) for s in batch_data_samples])
            losses.update(self.scene_head.loss(scene_logits, scenes))
        # Otherwise a process whose batch has no pair would have parameters without gradients, and
        # DistributedDataParallel would wait for them.
        losses['loss_predicate'] = losses['loss_predicate'] + sum(
            param.flatten()[0] * 0.0 for param in self.parameters() if param.requires_grad
        )
        return losses

    def _detector_loss(
        self, x: tuple[Tensor, ...], samples: SampleList
    ) -> tuple[dict, list[InstanceData]]:
        """Losses of RPN and RoI head as in Faster R-CNN, and the proposals."""
        rpn_samples = copy.deepcopy(samples)
        for sample in rpn_samples:
            # The RPN treats every object as class 0.
            sample.gt_instances.labels = torch.zeros_like(sample.gt_instances.labels)
        proposal_cfg = self.train_cfg.get('rpn_proposal', self.test_cfg.rpn)
        losses, proposals = self.rpn_head.loss_and_predict(
            x, rpn_samples, proposal_cfg=proposal_cfg
        )
        losses = {k if 'rpn' in k else f'rpn_{k}': v for k, v in losses.items()}
        # Pass copies, because the RoI head removes the boxes from its input.
        losses.update(
            self.roi_head.loss(x, [InstanceData(bboxes=p.bboxes) for p in proposals], samples)
        )
        return losses, proposals

    def _train_boxes(
        self, x: tuple[Tensor, ...], samples: SampleList, proposals: list[InstanceData] | None
    ) -> list[Tensor]:
        given = [sample.gt_instances.bboxes for sample in samples]
        if self.protocol.has_boxes:
            return given
        found = self._detect(x, samples, proposals)
        if not self.relation_train_cfg['add_gt']:
            return found
        return [torch.cat(both) for both in zip(given, found, strict=True)]

    def _match(self, boxes: list[Tensor], samples: SampleList) -> tuple[list[Tensor], list[Tensor]]:
        if self.protocol.has_boxes:
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
                self.relation_head.num_classes,
                self.relation_train_cfg['iou_thr'],
            )
            for b, sample in zip(boxes, samples, strict=True)
        ]
        return [m[0] for m in matches], [m[1] for m in matches]

    # ---- both --------------------------------------------------------------------------------

    @torch.no_grad()
    def _detect(
        self,
        x: tuple[Tensor, ...],
        samples: SampleList,
        proposals: list[InstanceData] | None = None,
    ) -> list[Tensor]:
        """Detected boxes (n, 4) of each image, in pixels of the network's input."""
        if proposals is None:
            proposals = self.rpn_head.predict(x, samples, rescale=False)
        metas = [sample.metainfo for sample in samples]
        found = self.roi_head.predict_bbox(x, metas, proposals, self.test_cfg.rcnn, rescale=False)
        most = self.relation_test_cfg['max_objects']
        return [result.bboxes[:most].detach() for result in found]

    def _roi_maps(self, x: tuple[Tensor, ...], boxes: list[Tensor]) -> Tensor:
        extractor = self.roi_head.bbox_roi_extractor
        maps = extractor(x[: extractor.num_inputs], bbox2roi(boxes))
        return self.roi_head.shared_head(maps) if self.roi_head.with_shared_head else maps

    def _objects(self, maps: Tensor, boxes: list[Tensor], samples: SampleList) -> GraphObjects:
        """Input of the relation head: objects, with the ground truth that the protocol gives."""
        if self.protocol.has_labels:
            labels = torch.cat([sample.gt_instances.labels for sample in samples])
            classes = self.relation_head.num_classes + 1
            probs = nn.functional.one_hot(labels, classes).to(maps.dtype)
        else:
            with torch.no_grad():
                head = self.roi_head.bbox_head
                scores = head(maps)[0]
                probs = (
                    head.loss_cls.get_activation(scores)
                    if head.custom_cls_channels
                    else scores.softmax(dim=-1)
                )
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
        """
        maps = self._roi_maps(x, boxes)
        objects = self._objects(maps, boxes, samples)
        if pairs is None:
            scores = objects.boxes[:, 4].split(objects.num_objs)
            options = {key: self.relation_test_cfg[key] for key in ('max_pairs', 'require_overlap')}
            pairs = [candidate_pairs(b, s, **options) for b, s in zip(boxes, scores, strict=True)]
        around = [union_boxes(b, p) for b, p in zip(boxes, pairs, strict=True)]
        starts = accumulate(objects.num_objs, initial=0)
        joined = torch.cat([p + start for p, start in zip(pairs, starts, strict=False)])
        logits = self.relation_head(maps, self._roi_maps(x, around), objects, joined, labels)
        return SceneGraphOutput(objects, joined, [len(p) for p in pairs], logits)

    def _scene(
        self, x: tuple[Tensor, ...], output: SceneGraphOutput, samples: SampleList
    ) -> Tensor:
        assert self.scene_head is not None  # callers check
        height, width = samples[0].batch_input_shape
        valid = [(s.img_shape[0] / height, s.img_shape[1] / width) for s in samples]
        return self.scene_head(x, valid, output.logits.obj_ctx, output.objects.num_objs)

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
            ``scores`` (n,), with a mask head in SGDet ``masks`` (n, H, W)), ``pred_relations``
            (``pairs`` (m, 2), indices of subject and object
            in ``pred_instances``, and ``scores`` (m, P)) and, with a scene head, ``pred_scene``
            (``score`` (S,), ``label`` (1,)).

        Raises:
            ValueError: A data sample lacks boxes or labels that the protocol needs.
        """
        x = self.extract_feat(batch_inputs)
        output = self._relate(x, self._test_boxes(x, batch_data_samples), batch_data_samples)
        scene_logits = None
        if self.scene_head is not None:
            scene_logits = self._scene(x, output, batch_data_samples)
        masks = self._masks(x, output, batch_data_samples)
        graphs = split_graphs(output, self.protocol, self.relation_test_cfg, masks)
        return write_predictions(batch_data_samples, graphs, scene_logits, rescale)

    def _masks(
        self, x: tuple[Tensor, ...], output: SceneGraphOutput, samples: SampleList
    ) -> list[Tensor] | None:
        """Masks of the detected objects (N, H, W), in the network's input; None without a head."""
        if self.protocol.has_boxes or not self.roi_head.with_mask:
            return None
        labels = output.logits.objects[:, :-1].argmax(dim=1).split(output.objects.num_objs)
        boxes = output.objects.boxes[:, :4].split(output.objects.num_objs)
        found = [InstanceData(bboxes=b, labels=n) for b, n in zip(boxes, labels, strict=True)]
        # Masks are pasted into the original image, so the input is passed off as one.
        metas = [
            {**sample.metainfo, 'ori_shape': sample.img_shape, 'scale_factor': (1.0, 1.0)}
            for sample in samples
        ]
        found = self.roi_head.predict_mask(x, metas, found, rescale=True)
        return [instances.masks for instances in found]

    def _test_boxes(self, x: tuple[Tensor, ...], samples: SampleList) -> list[Tensor]:
        if self.protocol.has_boxes:
            return given_boxes(samples, self.protocol)
        return self._detect(x, samples)

    def _forward(self, batch_inputs: Tensor, batch_data_samples: SampleList) -> tuple[Tensor, ...]:
        """Raw logits of objects (N, C + 1) and pairs (M, P + 1)."""
        x = self.extract_feat(batch_inputs)
        output = self._relate(x, self._test_boxes(x, batch_data_samples), batch_data_samples)
        return output.logits.objects, output.logits.predicates
