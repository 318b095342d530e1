"""Inference of a ``SceneGraphRCNN`` on one picture, in two modules that can be exported.

They use the weights and heads of the model, and repeat what MMDetection does around them without
branches on sizes, so that a traced graph holds for every size of the picture and number of objects.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..models.detectors import SceneGraphRCNN
from ..models.heads.relation_head import GraphObjects
from ..models.protocol import SceneGraphProtocol
from ..models.task_modules.geometry import union_boxes
from .ops import grouped_nms, roi_align


class DetectorGraph(nn.Module):
    """From a picture to feature maps and, in SGDet, boxes.

    Args:
        model: The model, in eval mode.
    """

    def __init__(self, model: SceneGraphRCNN) -> None:
        super().__init__()
        self.model = model
        self.test_cfg: Any = model.test_cfg
        self.divisor = model.data_preprocessor.pad_size_divisor
        self.pad_value = float(model.data_preprocessor.pad_value)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Compute feature maps and boxes.

        Args:
            image: (1, 3, H, W) float, the channels in the order of OpenCV (BGR), 0 to 255.

        Returns:
            Feature maps (1, C, h, w) of all levels of the neck; in SGDet also boxes (N, 4) xyxy in
            pixels of ``image``.
        """
        height, width = image.shape[2], image.shape[3]
        feats = self.model.extract_feat(self._preprocess(image))
        if self.model.protocol.has_boxes:
            return feats
        size = torch.stack([torch.as_tensor(width), torch.as_tensor(height)]).to(image)
        return *feats, self._detect(feats, size)

    def _preprocess(self, image: Tensor) -> Tensor:
        """Channels in the model's order, normalised, padded at the right and at the bottom."""
        preprocessor = self.model.data_preprocessor
        if preprocessor._channel_conversion:
            image = image.flip(1)
        if preprocessor._enable_normalize:
            image = (image - preprocessor.mean) / preprocessor.std
        below, beside = -image.shape[2] % self.divisor, -image.shape[3] % self.divisor
        return F.pad(image, (0, beside, 0, below), value=self.pad_value)

    def _detect(self, feats: tuple[Tensor, ...], size: Tensor) -> Tensor:
        proposals = self._proposals(feats, size)
        head, cfg = self.model.roi_head.bbox_head, self.test_cfg.rcnn
        scores, deltas = head(roi_maps(self.model, feats, proposals))
        probs = class_probs(self.model, scores)[:, :-1]
        kinds = 1 if head.reg_class_agnostic else head.num_classes
        repeated = proposals[:, None].expand(-1, kinds, -1).reshape(-1, 4)
        boxes = head.bbox_coder.decode(repeated, deltas.reshape(-1, 4))
        boxes = clip(boxes, size).reshape(-1, kinds, 4).expand(-1, head.num_classes, 4)
        row, label = (probs > cfg.score_thr).nonzero(as_tuple=True)
        found, score = boxes[row, label], probs[row, label]
        keep = grouped_nms(found, score, label, cfg.nms.iou_threshold, size.max())
        most = self.model.relation_test_cfg['max_objects']
        return found[keep[: cfg.max_per_img][:most]]

    def _proposals(self, feats: tuple[Tensor, ...], size: Tensor) -> Tensor:
        """(R, 4) boxes that the RPN proposes, the best first."""
        head, cfg = self.model.rpn_head, self.test_cfg.rpn
        maps = head(feats)
        priors = head.prior_generator.grid_priors(
            [m.shape[-2:] for m in maps[0]], dtype=feats[0].dtype, device=feats[0].device
        )
        boxes, scores, levels = [], [], []
        for level, (cls, reg, prior) in enumerate(zip(maps[0], maps[1], priors, strict=True)):
            logits = cls[0].permute(1, 2, 0).reshape(-1, head.cls_out_channels)
            score = logits.sigmoid() if head.use_sigmoid_cls else logits.softmax(-1)[:, :-1]
            best, order = score.squeeze(1).sort(descending=True)
            order = order[: cfg.nms_pre]
            delta = reg[0].permute(1, 2, 0).reshape(-1, 4)[order]
            boxes.append(clip(head.bbox_coder.decode(prior[order], delta), size))
            scores.append(best[: cfg.nms_pre])
            levels.append(torch.full_like(order, level))
        found, score, which = torch.cat(boxes), torch.cat(scores), torch.cat(levels)
        smallest = cfg.get('min_bbox_size', -1)
        if smallest >= 0:
            valid = ((found[:, 2:] - found[:, :2]) > smallest).all(dim=1).nonzero()[:, 0]
            found, score, which = found[valid], score[valid], which[valid]
        keep = grouped_nms(found, score, which, cfg.nms.iou_threshold, size.max())
        return found[keep[: cfg.max_per_img]]


class RelationGraph(nn.Module):
    """From feature maps and boxes to object and predicate scores, pairs and, if any, the scene.

    Args:
        model: The model, in eval mode.
    """

    def __init__(self, model: SceneGraphRCNN) -> None:
        super().__init__()
        self.model = model

    def forward(self, size: Tensor, boxes: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        """Compute the graph.

        Args:
            size: (2,) float, height and width of the picture that the detector saw.
            boxes: (N, 4) float xyxy in its pixels, N > 0.
            rest: In PredCls ``labels`` (N,) int64; then the feature maps.

        Returns:
            ``object_scores`` (N, C), ``pairs`` (M, 2) int64 and ``predicate_scores`` (M, P); with a
            scene head also ``scene_scores`` (S,).
        """
        model = self.model
        labels, feats = (rest[0], rest[1:]) if model.protocol.has_labels else (None, rest)
        maps = roi_maps(model, feats, boxes)
        if labels is None:
            probs = class_probs(model, model.roi_head.bbox_head(maps)[0])
        else:
            classes = torch.arange(model.relation_head.num_classes + 1, device=boxes.device)
            probs = (labels[:, None] == classes[None]).to(maps)
        confidence = probs[:, :-1].amax(dim=1, keepdim=True)
        objects = GraphObjects(
            torch.cat([boxes, confidence], dim=1),
            probs,
            [boxes.shape[0]],
            size[None].expand(boxes.shape[0], 2),
        )
        pairs = self._pairs(boxes, confidence[:, 0])
        around = roi_maps(model, feats, union_boxes(boxes, pairs))
        logits = model.relation_head(maps, around, objects, pairs)
        out = [
            self._object_scores(probs, logits.objects),
            pairs,
            logits.predicates.softmax(dim=1)[:, :-1],
        ]
        if model.scene_head is not None:
            out.append(self._scene(feats, logits.obj_ctx, size))
        return tuple(out)

    def _pairs(self, boxes: Tensor, scores: Tensor) -> Tensor:
        """(M, 2) pairs as :func:`~..models.task_modules.pair_sampler.candidate_pairs` chooses."""
        cfg = self.model.relation_test_cfg
        index = torch.arange(boxes.shape[0], device=boxes.device)
        allowed = index[:, None] != index[None]
        if cfg['require_overlap']:
            common = torch.min(boxes[:, None, 2:], boxes[None, :, 2:])
            common = common - torch.max(boxes[:, None, :2], boxes[None, :, :2])
            allowed = allowed & (common > 0).all(dim=2)
        pairs = allowed.nonzero()
        if cfg['max_pairs'] is None:
            return pairs
        product = scores[pairs[:, 0]] * scores[pairs[:, 1]]
        best = product.argsort(descending=True)[: cfg['max_pairs']]
        return pairs[best.sort()[0]]

    def _object_scores(self, given: Tensor, logits: Tensor) -> Tensor:
        protocol = self.model.protocol
        if protocol.has_labels:
            return given[:, :-1]
        if protocol is SceneGraphProtocol.SGCLS:
            return logits[:, :-1].softmax(dim=1)
        return logits.softmax(dim=1)[:, :-1]

    def _scene(self, feats: tuple[Tensor, ...], obj_ctx: Tensor, size: Tensor) -> Tensor:
        """(S,) scene scores; pools as :class:`~..models.heads.scene_head.SceneHead` does."""
        head: Any = self.model.scene_head
        divisor = self.model.data_preprocessor.pad_size_divisor
        padded = torch.ceil(size / divisor) * divisor
        pooled = []
        for level in head.in_levels:
            feat = feats[level][0]
            inside = [
                torch.arange(length, device=feat.device) < torch.ceil(length * size[a] / padded[a])
                for a, length in enumerate((feat.shape[1], feat.shape[2]))
            ]
            mask = (inside[0][:, None] & inside[1][None]).to(feat)
            pooled.append((feat * mask).sum((1, 2)) / mask.sum())
        pooled += [obj_ctx.mean(dim=0), obj_ctx.amax(dim=0)]
        return head.fc_scene(head.fc(torch.cat(pooled)[None]))[0].softmax(dim=0)


def roi_maps(model: Any, feats: tuple[Tensor, ...], boxes: Tensor) -> Tensor:
    """RoI maps (N, C, S, S) of boxes (N, 4) on the levels that the RoI extractor assigns."""
    extractor = model.roi_head.bbox_roi_extractor
    rois = torch.cat([torch.zeros_like(boxes[:, :1]), boxes], dim=1)
    used = feats[: extractor.num_inputs]
    levels = extractor.map_roi_levels(rois, len(used))
    order, maps = [], []
    for level, (feat, layer) in enumerate(zip(used, extractor.roi_layers, strict=True)):
        rows = (levels == level).nonzero()[:, 0]
        order.append(rows)
        maps.append(roi_align(feat, rois[rows], layer))
    # Each box is on one level: sorting the rows puts the maps back into the order of the boxes.
    found = torch.cat(maps)[torch.cat(order).argsort()]
    return model.roi_head.shared_head(found) if model.roi_head.with_shared_head else found


def class_probs(model: Any, scores: Tensor) -> Tensor:
    """Class probabilities (N, C + 1) of the box head's scores, background last."""
    head = model.roi_head.bbox_head
    if head.custom_cls_channels:
        return head.loss_cls.get_activation(scores)
    return scores.softmax(dim=-1)


def clip(boxes: Tensor, size: Tensor) -> Tensor:
    """Boxes (N, 4) xyxy within a picture of ``size`` (2,): width and height."""
    return torch.min(boxes.clamp(min=0), size.repeat(2))
