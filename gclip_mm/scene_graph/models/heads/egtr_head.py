"""Head that reads relations from the self-attention of a DETR's decoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from mmdet.models.layers import MLP
from mmdet.registry import MODELS
from mmengine.model import BaseModule
from mmengine.structures import InstanceData
from torch import Tensor, nn
from torch.nn import functional as F

from ..protocol import SceneGraphProtocol
from ..task_modules.query_matching import QueryMatch, match_quality
from .debias import Debias
from .egtr_losses import connectivity_loss, sampled_relation_loss

_INIT_STD = 0.02


class QueryStates(NamedTuple):
    """What a decoder computed of its Q queries.

    Attributes:
        queries: (B, Q, D) for each layer, projected queries of its self-attention, not scaled.
        keys: (B, Q, D) for each layer, its projected keys.
        hidden: (B, Q, D), output of the last layer.
        logits: (B, Q, C'), class logits.
        probs: (B, Q, C), class probabilities without background.
        boxes: (B, Q, 4), centre and size relative to the image.
    """

    queries: list[Tensor]
    keys: list[Tensor]
    hidden: Tensor
    logits: Tensor
    probs: Tensor
    boxes: Tensor


class QueryLogits(NamedTuple):
    """Output of the head for each subject (second axis) and object (third axis).

    Attributes:
        predicates: (B, Q, Q, P); there is no "no relation", each predicate has a sigmoid.
        connectivity: (B, Q, Q), whether there is a relation.
    """

    predicates: Tensor
    connectivity: Tensor


@MODELS.register_module()
class EGTRHead(BaseModule):
    """Predicts the relations of the queries of a DETR (Im et al., EGTR, arXiv 2404.02072).

    The self-attention of a decoder relates its queries: query and key of a pair of objects are the
    source of their relation. Each layer's are projected and concatenated; those of all layers, and
    a projection of the last layer's output, are added with a learned gate each. One MLP predicts
    the predicates of each pair, another whether there is a relation. The score of a predicate is
    the product of both sigmoids.

    In training, each pair of matched queries has its annotated predicates as targets, multiplied
    by how well both queries match their objects (adaptive smoothing). Of the wrong predicates, the
    highest ones are taken only, some for each annotated relation.

    The head is part of a :class:`SceneGraphDetector` whose detector is a DETR, DeformableDETR or
    DINO. Boxes cannot be given to such a detector, so ``protocol='sgdet'`` is the only one.
    Weights are named as in the published code.

    Args:
        num_classes: Object classes C.
        num_predicates: Predicates P.
        embed_dims: Width D of the decoder. Set by the detector, as are ``num_classes`` and
            ``num_layers``.
        num_layers: Layers of the decoder.
        frequency_bias: Config of a bias by the predicted classes, such as :class:`LogCountBias`,
            the published one, or :class:`FrequencyBias`. None: no bias.
        smoothing: How unsure a perfect match is. None: all matches are sure.
        num_negatives: Wrong predicates of pairs of matched queries, for each annotated relation of
            the image. None: all.
        num_nonmatching: The same for pairs of which a query has no object.
        hard_negatives: Take the wrong predicates with the highest logits. False: random ones.
        hard_nonmatching: The same for ``num_nonmatching``.
        loss_weight: Weight of the predicates' loss.
        connectivity_weight: Weight of the connectivity's loss.
        debias: Config of :class:`LogitAdjustment`. None: predicates as they are.
        protocol: Set by the detector.

    Raises:
        ValueError: A number is out of its range, the protocol gives boxes, or ``debias`` needs a
            context.

    Example:
        >>> # _base_ = 'mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py'
        >>> model = dict(
        ...     _delete_=True, type='SceneGraphDetector', detector={{_base_.model}},
        ...     protocol='sgdet', freeze_detector=False,
        ...     relation_head=dict(
        ...         type='EGTRHead', num_predicates=50,
        ...         frequency_bias=dict(type='LogCountBias')))
    """

    def __init__(
        self,
        num_classes: int,
        num_predicates: int,
        embed_dims: int,
        num_layers: int,
        frequency_bias: dict | None = None,
        smoothing: float | None = 1e-14,
        num_negatives: int | None = 80,
        num_nonmatching: int | None = 80,
        hard_negatives: bool = True,
        hard_nonmatching: bool = True,
        loss_weight: float = 15.0,
        connectivity_weight: float = 30.0,
        debias: dict | None = None,
        protocol: str | SceneGraphProtocol = SceneGraphProtocol.SGDET,
        init_cfg: dict | list | None = None,
    ) -> None:
        super().__init__(init_cfg)
        self.protocol = protocol
        if smoothing is not None and not 0 < smoothing < 1:
            raise ValueError(f'smoothing must be in (0, 1), or None, got {smoothing}')
        counts = dict(num_negatives=num_negatives, num_nonmatching=num_nonmatching)
        for key, value in counts.items():
            if value is not None and value < 0:
                raise ValueError(f'{key} must be at least 0, or None, got {value}')
        for key, weight in (
            ('loss_weight', loss_weight),
            ('connectivity_weight', connectivity_weight),
        ):
            if not 0 <= weight < float('inf'):
                raise ValueError(f'{key} must be a finite number of at least 0, got {weight}')
        self.num_classes = num_classes
        self.num_predicates = num_predicates
        self.embed_dims = embed_dims
        self.smoothing = smoothing
        self.num_negatives = num_negatives
        self.num_nonmatching = num_nonmatching
        self.hard_negatives = hard_negatives
        self.hard_nonmatching = hard_nonmatching
        self.loss_weight = loss_weight
        self.connectivity_weight = connectivity_weight
        self.proj_q = nn.ModuleList(nn.Linear(embed_dims, embed_dims) for _ in range(num_layers))
        self.proj_k = nn.ModuleList(nn.Linear(embed_dims, embed_dims) for _ in range(num_layers))
        self.final_sub_proj = nn.Linear(embed_dims, embed_dims)
        self.final_obj_proj = nn.Linear(embed_dims, embed_dims)
        self.rel_predictor_gate = nn.Linear(2 * embed_dims, 1)
        self.rel_predictor = MLP(2 * embed_dims, embed_dims, num_predicates, 3)
        self.connectivity_layer = MLP(2 * embed_dims, embed_dims, 1, 3)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=_INIT_STD)
                nn.init.zeros_(module.bias)
        self.frequency_bias: nn.Module | None = None
        if frequency_bias is not None:
            sizes = dict(num_classes=num_classes, num_predicates=num_predicates)
            self.frequency_bias = MODELS.build({**frequency_bias, **sizes})
        self.debias: Debias | None = None
        if debias is not None:
            self.debias = MODELS.build({**debias, 'num_predicates': num_predicates, 'fc_dim': 0})
            if not isinstance(self.debias, Debias) or self.debias.needs_context:
                raise ValueError(
                    f'relation_head.debias: {debias["type"]} cannot correct an EGTRHead, which has '
                    'no context; LogitAdjustment can'
                )

    @property
    def protocol(self) -> SceneGraphProtocol:
        """The protocol; SGDet is the only one."""
        return SceneGraphProtocol.SGDET

    @protocol.setter
    def protocol(self, value: str | SceneGraphProtocol) -> None:
        value = SceneGraphProtocol.parse(value)
        if value is not SceneGraphProtocol.SGDET:
            raise ValueError(
                f'protocol={value.value!r} gives boxes, but an EGTRHead relates the queries of the '
                "detector, which have boxes of their own: use protocol='sgdet', or a RelationHead"
            )

    @property
    def obj_ctx_dim(self) -> int:
        """Columns of :meth:`object_features`."""
        return self.num_classes + self.embed_dims

    def object_features(self, states: QueryStates) -> Tensor:
        """Input of the scene head, (B * Q, C + D): class probabilities, and the last layer.

        Probabilities are detached, so that the scene loss does not influence the labels.
        """
        return torch.cat([states.probs.detach(), states.hidden], dim=-1).flatten(0, 1)

    def forward(self, states: QueryStates) -> QueryLogits:
        """Compute the logits of all pairs of queries."""
        subjects = [proj(q) for proj, q in zip(self.proj_q, states.queries, strict=True)]
        objects = [proj(k) for proj, k in zip(self.proj_k, states.keys, strict=True)]
        subject = torch.stack([*subjects, self.final_sub_proj(states.hidden)], dim=2)
        object_ = torch.stack([*objects, self.final_obj_proj(states.hidden)], dim=2)
        of_subject, of_object = self.rel_predictor_gate.weight.chunk(2, dim=1)
        gate = (
            F.linear(subject, of_subject, self.rel_predictor_gate.bias).transpose(2, 3)
            + F.linear(object_, of_object).transpose(2, 3).transpose(1, 2)
        ).sigmoid()  # (B, Q, Q, L + 1)
        predicates = _gated_perceptron(self.rel_predictor, gate, subject, object_)
        if self.frequency_bias is not None:
            predicates = predicates + self._bias(states.probs.argmax(dim=-1))
        connectivity = _gated_perceptron(self.connectivity_layer, gate, subject, object_)
        return QueryLogits(predicates, connectivity.squeeze(-1))

    def _bias(self, labels: Tensor) -> Tensor:
        """(B, Q, Q, P) bias of each pair of labels (B, Q); "no relation" has no logit here."""
        assert self.frequency_bias is not None  # the caller checks
        batch, count = labels.shape
        index = torch.arange(batch * count, device=labels.device).reshape(batch, count)
        pairs = torch.stack(
            [
                index[:, :, None].expand(batch, count, count),
                index[:, None].expand(batch, count, count),
            ],
            dim=-1,
        )
        bias = self.frequency_bias(labels.flatten(), pairs.reshape(-1, 2))
        return bias[:, : self.num_predicates].reshape(batch, count, count, -1)

    def scores(self, logits: QueryLogits) -> Tensor:
        """(B, Q, Q, P) scores in [0, 1] of the predicates, corrected by ``debias``."""
        predicates = logits.predicates
        if self.debias is not None:
            flat = F.pad(predicates.flatten(0, 2), (0, 1))  # the unused "no relation"
            predicates = self.debias(flat, None, None)[:, :-1].reshape(predicates.shape)
        return predicates.sigmoid() * logits.connectivity.sigmoid()[..., None]

    def loss(
        self,
        logits: QueryLogits,
        matches: Sequence[QueryMatch],
        relations: Sequence[InstanceData],
    ) -> dict[str, Tensor]:
        """Compute the losses of a batch.

        Args:
            logits: Output of :meth:`forward`.
            matches: The matched queries of each image.
            relations: Ground truth of each image: ``pairs`` (R, 2), rows of its objects, and
                ``labels`` (R,), negative to ignore the pair.

        Returns:
            ``loss_predicate``, 0 without relations, and ``loss_connectivity``; and
            ``acc_predicate``: the share, in percent, of the pairs with relations whose best
            predicate is an annotated one.
        """
        losses, connected, right = [], [], []
        for image, (match, truth) in enumerate(zip(matches, relations, strict=True)):
            target, known = self._targets(match, truth)
            predicates = logits.predicates[image]
            weight = match_quality(match.excess, self.smoothing)
            losses.append(
                sampled_relation_loss(
                    predicates,
                    match.queries,
                    target,
                    known,
                    torch.outer(weight, weight).to(predicates.dtype),
                    (self.num_negatives, self.num_nonmatching),
                    (self.hard_negatives, self.hard_nonmatching),
                )
            )
            connected.append(
                connectivity_loss(logits.connectivity[image], match.queries, target, known)
            )
            rows, columns = target.any(dim=-1).nonzero(as_tuple=True)
            best = predicates[match.queries[rows], match.queries[columns]].argmax(dim=-1)
            right.append(target[rows, columns, best])
        joined = torch.cat(losses)
        result = dict(
            loss_predicate=self.loss_weight * joined.sum() / max(len(joined), 1),
            loss_connectivity=self.connectivity_weight * torch.cat(connected).mean(),
        )
        hits = torch.cat(right)
        if len(hits):
            result['acc_predicate'] = 100 * hits.float().mean()
        return result

    def _targets(self, match: QueryMatch, truth: InstanceData) -> tuple[Tensor, Tensor]:
        """Targets of the pairs of matched queries.

        Returns:
            (G, G, P) bool, the annotated predicates; (G, G) bool, False for pairs to ignore.
        """
        count, device = len(match.queries), match.queries.device
        target = torch.zeros(count, count, self.num_predicates, dtype=torch.bool, device=device)
        ignored = torch.zeros(count, count, dtype=torch.bool, device=device)
        rows, columns = match.position[truth.pairs.long()].reshape(-1, 2).unbind(1)
        # With fewer queries than objects, some objects have none.
        whole = (rows >= 0) & (columns >= 0)
        rows, columns, labels = rows[whole], columns[whole], truth.labels[whole]
        kept = labels >= 0
        target[rows[kept], columns[kept], labels[kept]] = True
        ignored[rows[~kept], columns[~kept]] = True
        return target, ~ignored | target.any(dim=-1)


def _gated_perceptron(mlp: MLP, gate: Tensor, subject: Tensor, object_: Tensor) -> Tensor:
    """Output of an MLP for the sum of the gated sources of each pair.

    Gate and first layer are linear in the concatenated pair, so both are computed for subjects and
    objects apart: no tensor has the concatenated pairs (B, Q, Q, L + 1, 2 D), and the first layer
    runs on queries and not on pairs.

    Args:
        mlp: With at least two layers, the first of 2 D inputs.
        gate: (B, Q, Q, L + 1).
        subject: (B, Q, L + 1, D), sources of each query as a subject.
        object_: (B, Q, L + 1, D), as an object.

    Returns:
        (B, Q, Q, output size of the MLP).
    """
    first, *others = mlp.layers
    of_subject, of_object = first.weight.chunk(2, dim=1)
    x = torch.einsum('bijl,bild->bijd', gate, F.linear(subject, of_subject))
    x = x + torch.einsum('bijl,bjld->bijd', gate, F.linear(object_, of_object)) + first.bias
    for layer in others:
        x = layer(x.relu())
    return x
