"""Head that predicts object labels and predicates from RoI maps of objects and pairs."""

from __future__ import annotations

from typing import NamedTuple

import torch
from mmdet.models.losses import accuracy
from mmdet.registry import MODELS
from mmengine.model import BaseModule
from torch import Tensor, nn

from ..contexts.base import BaseContext, build_context
from ..protocol import SceneGraphProtocol
from ..task_modules.geometry import BOX_GEOMETRY_DIM, box_geometry
from .debias import Debias

FUSIONS = ('sum', 'product')
# Keeps the logarithm finite if a probability underflows.
_MIN_PROB = 1e-6


class GraphObjects(NamedTuple):
    """The objects of a batch, image by image.

    Attributes:
        boxes: (N, 5): x1, y1, x2, y2 in pixels of the network's input, confidence.
        probs: (N, C + 1) class probabilities, background last; one-hot for given labels.
        num_objs: Number of objects of each image.
        image_sizes: (N, 2) height and width of the image of each object.
    """

    boxes: Tensor
    probs: Tensor
    num_objs: list[int]
    image_sizes: Tensor


class GraphLogits(NamedTuple):
    """Output of the relation head.

    Attributes:
        objects: (N, C + 1) refined object logits, background last.
        predicates: (M, P + 1) predicate logits, "no relation" last.
        obj_ctx: (N, D) input of the scene head: refined class probabilities and object context.
    """

    objects: Tensor
    predicates: Tensor
    obj_ctx: Tensor


def _softmax_loss(key: str, cfg: dict) -> nn.Module:
    """Build a loss whose classes are those of the head and compete.

    Raises:
        ValueError: It uses sigmoids, or outputs other than the classes and the background.
    """
    loss = MODELS.build(cfg)
    why = None
    if getattr(loss, 'use_sigmoid', False):
        why = 'trains a sigmoid for each class'
    elif getattr(loss, 'custom_cls_channels', False):
        why = 'needs outputs besides the classes and the background'
    if why is not None:
        raise ValueError(
            f'relation_head.{key}: {type(loss).__name__} {why}, but prediction takes the softmax '
            'over the classes and the background. Use CrossEntropyLoss, with class_weight for '
            'rare classes, or CountWeightedCrossEntropy'
        )
    return loss


@MODELS.register_module()
class RelationHead(BaseModule):
    """Refines object labels and predicts predicates, through an exchangeable context.

    The features of an object are its RoI map, class probabilities and box geometry. Those of a pair
    are the map of its union box, in which both boxes are marked. The ``context`` passes information
    between objects and pairs. Refined object logits are the detector's log-probabilities plus a
    correction from the context. Predicate logits are computed from the pair's context vector, the
    product of the mean appearance of both objects, and the union map; the frequency bias of the two
    labels is added. The product helps with predicates about similarity, which sums learn slowly.

    Args:
        num_classes: Object classes C.
        num_predicates: Predicates P.
        in_channels: Channels of the RoI maps.
        roi_size: Height and width S of the RoI maps.
        context: Config of a :class:`~gclip_mm.scene_graph.models.contexts.BaseContext`. None:
            use the frequency bias alone, the baseline of arXiv 1711.06640.
        union: Config of :class:`UnionFeatures`.
        frequency_bias: Config of :class:`FrequencyBias`. None: no bias.
        fc_dim: Width of the fully connected layers on RoI maps.
        embed_dim: Size of the label embedding.
        geometry_dim: Size of the box geometry embedding.
        fusion: Combination of a pair's context and its union map: ``'sum'`` followed by ReLU, or
            ``'product'`` as in Neural Motifs.
        dropout: Dropout on object features and before the predicate layer.
        protocol: Set by the detector.
        loss_object: Loss of the refined labels; unused in PredCls.
        loss_predicate: Loss of the predicates, averaged over the pairs of the batch. Prediction
            takes the softmax of the logits, so both losses have to be losses of a softmax.
        debias: Config of a :class:`~gclip_mm.scene_graph.models.heads.debias.Debias`, such as
            ``dict(type='LogitAdjustment', tau=0.6)`` or ``dict(type='TDE')``: corrects the
            logits of the predicates in prediction. None: as they are.

    Raises:
        ValueError: ``fusion`` or the context is unknown, neither ``context`` nor
            ``frequency_bias`` is set, a loss is not one of a softmax over the classes, or
            ``debias`` needs a context and there is none.

    Example:
        >>> relation_head = dict(
        ...     type='RelationHead', num_classes=150, num_predicates=50, in_channels=256,
        ...     context=dict(type='TransformerContext', norm='pre'),
        ...     frequency_bias=dict(type='FrequencyBias'))
    """

    def __init__(
        self,
        num_classes: int,
        num_predicates: int,
        in_channels: int,
        context: dict | None,
        roi_size: int = 7,
        union: dict | None = None,
        frequency_bias: dict | None = None,
        fc_dim: int = 1024,
        embed_dim: int = 200,
        geometry_dim: int = 128,
        fusion: str = 'sum',
        dropout: float = 0.0,
        protocol: str | SceneGraphProtocol = SceneGraphProtocol.PREDCLS,
        loss_object: dict | None = None,
        loss_predicate: dict | None = None,
        debias: dict | None = None,
        init_cfg: dict | list | None = None,
    ) -> None:
        super().__init__(init_cfg)
        if fusion not in FUSIONS:
            raise ValueError(f'fusion must be one of {FUSIONS}, got {fusion!r}')
        if context is None and frequency_bias is None:
            raise ValueError('without a context, a frequency_bias is needed')
        self.num_classes = num_classes
        self.num_predicates = num_predicates
        self.fusion = fusion
        self.protocol = SceneGraphProtocol.parse(protocol)
        cross_entropy = dict(type='CrossEntropyLoss', loss_weight=1.0)
        self.loss_object = _softmax_loss('loss_object', loss_object or cross_entropy)
        self.loss_predicate = _softmax_loss('loss_predicate', loss_predicate or cross_entropy)
        self.frequency_bias: nn.Module | None = None
        if frequency_bias is not None:
            counts = dict(num_classes=num_classes, num_predicates=num_predicates)
            self.frequency_bias = MODELS.build({**frequency_bias, **counts})
        self.context: BaseContext | None = None
        if context is not None:
            self._build_context(
                context, union or {}, in_channels, roi_size, fc_dim, embed_dim, geometry_dim
            )
            self.dropout = nn.Dropout(dropout)
        self.debias: Debias | None = None
        if debias is not None:
            sizes = dict(num_predicates=num_predicates, fc_dim=fc_dim)
            self.debias = MODELS.build({**debias, **sizes})
            if not isinstance(self.debias, Debias):
                raise ValueError(f'relation_head.debias: {debias["type"]} is not a Debias')
            if self.debias.needs_context and context is None:
                raise ValueError(f'relation_head.debias: {debias["type"]} needs a context')

    def _build_context(
        self,
        context: dict,
        union: dict,
        in_channels: int,
        roi_size: int,
        fc_dim: int,
        embed_dim: int,
        geometry_dim: int,
    ) -> None:
        map_dim = in_channels * roi_size**2
        self.obj_fc = nn.Sequential(
            nn.Linear(map_dim, fc_dim),
            nn.ReLU(inplace=True),
            nn.Linear(fc_dim, fc_dim),
            nn.ReLU(inplace=True),
        )
        # Embeds a distribution over labels, not a single label.
        self.label_embedding = nn.Linear(self.num_classes, embed_dim, bias=False)
        nn.init.normal_(self.label_embedding.weight, std=embed_dim**-0.5)
        self.geometry = nn.Sequential(
            nn.Linear(BOX_GEOMETRY_DIM, geometry_dim), nn.ReLU(inplace=True)
        )
        self.union = MODELS.build({'type': 'UnionFeatures', **union, 'channels': in_channels})
        self.union_fc = nn.Sequential(nn.Linear(map_dim, fc_dim), nn.ReLU(inplace=True))
        sizes = dict(in_dim=fc_dim + embed_dim + geometry_dim, union_channels=in_channels)
        built = build_context({**context, **sizes})
        self.context = built
        self.fc_object = nn.Linear(fc_dim + built.out_dim, self.num_classes + 1)
        self.edge_fc = nn.Linear(built.edge_dim, fc_dim)
        self.looks = nn.Sequential(nn.Linear(in_channels, fc_dim), nn.LayerNorm(fc_dim))
        self.likeness_fc = nn.Linear(fc_dim, fc_dim)
        self.fc_predicate = nn.Linear(fc_dim, self.num_predicates + 1)
        for layer in (self.fc_object, self.fc_predicate):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)

    @property
    def obj_ctx_dim(self) -> int:
        """Columns of ``obj_ctx``: class probabilities, and the object context if there is one."""
        return self.num_classes + (0 if self.context is None else self.context.out_dim)

    def forward(
        self,
        obj_maps: Tensor,
        union_maps: Tensor,
        objects: GraphObjects,
        pairs: Tensor,
        labels: Tensor | None = None,
    ) -> GraphLogits:
        """Compute logits of objects and pairs.

        Args:
            obj_maps: (N, in_channels, S, S) RoI maps of the objects.
            union_maps: (M, in_channels, S, S) RoI maps of the union boxes.
            objects: The objects.
            pairs: (M, 2) int64, row indices of ``objects``.
            labels: (N,) int64 ground-truth labels for the frequency bias in training, -1 for
                objects without one. For these, and if None, the refined label is used.

        Returns:
            Logits of objects and predicates.
        """
        probs = objects.probs[:, : self.num_classes]
        prior = objects.probs.clamp(min=_MIN_PROB).log()
        if self.context is None:
            assert self.frequency_bias is not None  # checked in the constructor
            bias = self.frequency_bias(self._bias_labels(prior, labels), pairs)
            bias = bias if self.debias is None else self.debias(bias, None, None)
            return GraphLogits(prior, bias, probs)
        appearance = self.obj_fc(obj_maps.flatten(1))
        feats = torch.cat(
            [
                appearance,
                self.label_embedding(probs),
                self.geometry(box_geometry(objects.boxes, objects.image_sizes)),
            ],
            dim=1,
        )
        union_maps = self.union(union_maps, objects.boxes, pairs)
        obj_ctx, edge_ctx = self.context(
            self.dropout(feats), objects.boxes, objects.num_objs, union_maps, pairs
        )
        if self.protocol.has_labels:
            obj_logits = prior
        else:
            obj_logits = prior + self.fc_object(torch.cat([appearance, obj_ctx], dim=1))
        looks = self.looks(obj_maps.mean(dim=(2, 3)))
        likeness = looks[pairs[:, 0]] * looks[pairs[:, 1]]
        edge = self.edge_fc(edge_ctx) + self.likeness_fc(likeness)
        seen = self.union_fc(union_maps.flatten(1))
        bias = None
        if self.frequency_bias is not None:
            bias = self.frequency_bias(self._bias_labels(obj_logits, labels), pairs)

        def predicates(edge: Tensor) -> Tensor:
            joint = (edge + seen).relu() if self.fusion == 'sum' else edge * seen
            logits = self.fc_predicate(self.dropout(joint))
            return logits if bias is None else logits + bias

        logits = predicates(edge)
        if self.debias is not None:
            logits = self.debias(logits, edge, predicates)
        # Detached, so that the scene loss does not influence the labels.
        refined = obj_logits.detach().softmax(dim=1)[:, : self.num_classes]
        return GraphLogits(obj_logits, logits, torch.cat([refined, obj_ctx], dim=1))

    def _bias_labels(self, obj_logits: Tensor, labels: Tensor | None) -> Tensor:
        if obj_logits.shape[0] == 0:
            return torch.zeros(0, dtype=torch.int64, device=obj_logits.device)
        refined = obj_logits[:, : self.num_classes].argmax(dim=1)
        return refined if labels is None else torch.where(labels >= 0, labels, refined)

    def loss(
        self, logits: GraphLogits, obj_labels: Tensor, predicate_labels: Tensor
    ) -> dict[str, Tensor]:
        """Compute the losses of a batch; zero if it has no pair or no object.

        Args:
            logits: Output of :meth:`forward`.
            obj_labels: (N,) int64, C for background.
            predicate_labels: (M,) int64, P for "no relation".

        Returns:
            ``loss_predicate``, and ``acc_predicate`` in percent over the pairs with a relation.
            Except in PredCls, also ``loss_object`` and ``acc_object``.
        """
        losses = {
            'loss_predicate': self.loss_predicate(
                logits.predicates, predicate_labels, avg_factor=max(len(predicate_labels), 1)
            )
        }
        related = predicate_labels < self.num_predicates
        if related.any():
            losses['acc_predicate'] = accuracy(
                logits.predicates[related, : self.num_predicates], predicate_labels[related]
            )
        if not self.protocol.has_labels:
            known = logits.objects
            if self.protocol is SceneGraphProtocol.SGCLS:
                known = known[:, : self.num_classes]  # a given box is never background
            losses['loss_object'] = self.loss_object(
                known, obj_labels, avg_factor=max(len(obj_labels), 1)
            )
            if len(obj_labels):
                losses['acc_object'] = accuracy(known, obj_labels)
        return losses
