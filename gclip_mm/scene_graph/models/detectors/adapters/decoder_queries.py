"""Reads queries and keys of a DETR's decoder, without a change to the detector."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from mmdet.models.detectors import DDQDETR, DETR, DeformableDETR, GroundingDINO
from torch import Tensor, nn
from torch.nn import functional as F

from ...heads.egtr_head import QueryStates

_READABLE = (DETR, DeformableDETR)  # DINO is a DeformableDETR
#: DINOs whose decoder selects among its queries, or whose classes are words.
_UNREADABLE = (DDQDETR, GroundingDINO)


def decoder_of(detector: Any, head: str) -> Any:
    """The decoder of a detector whose queries can be read.

    Args:
        detector: A detector of MMDetection.
        head: Class name of the relation head, for the error.

    Raises:
        ValueError: The detector has no such decoder.
    """
    decoder = getattr(detector, 'decoder', None)
    layers = getattr(decoder, 'layers', None) or []
    attention = [getattr(getattr(layer, 'self_attn', None), 'attn', None) for layer in layers]
    if (
        not isinstance(detector, _READABLE)
        or isinstance(detector, _UNREADABLE)
        or not attention
        or any(getattr(module, 'in_proj_weight', None) is None for module in attention)
    ):
        raise ValueError(
            f'{head} reads the self-attention of the decoder of a DETR, DeformableDETR or DINO; '
            f'the detector of this config is a {type(detector).__name__}'
        )
    return decoder


class QueryRecorder:
    """Keeps what the decoder of a detector computes in one forward pass."""

    def __init__(self) -> None:
        self._attention: list[tuple[Tensor, Tensor]] = []
        self._outputs: list[tuple[Tensor, Tensor, Tensor]] = []

    def on_attention(self, attn: nn.MultiheadAttention, args: tuple, kwargs: dict) -> None:
        """Pre-hook of the attention of a layer: projects its inputs as the module does."""
        query = args[0] if args else kwargs['query']
        key = args[1] if len(args) > 1 else kwargs['key']
        if not attn.batch_first:
            query, key = query.transpose(0, 1), key.transpose(0, 1)
        weights = attn.in_proj_weight.chunk(3)
        biases = [None] * 3 if attn.in_proj_bias is None else attn.in_proj_bias.chunk(3)
        self._attention.append(
            (F.linear(query, weights[0], biases[0]), F.linear(key, weights[1], biases[1]))
        )

    def on_box_head(self, head: Any, args: tuple, kwargs: dict, output: tuple) -> None:
        """Hook of the box head: inputs are the states of all layers, outputs logits and boxes."""
        states = kwargs['hidden_states'] if 'hidden_states' in kwargs else args[0]
        self._outputs.append((states[-1], output[0][-1], output[1][-1]))

    def states(self, detector: Any) -> QueryStates:
        """What was recorded of the queries that predict objects.

        A DINO in training has denoising queries before them, which hold ground truth. The
        attention mask keeps it from the others.

        Raises:
            RuntimeError: The detector did not run its decoder and its box head once.
        """
        layers, runs = len(detector.decoder.layers), len(self._outputs)
        if len(self._attention) != layers or runs != 1:
            raise RuntimeError(
                f'{type(detector).__name__}: {len(self._attention)} self-attentions and {runs} '
                f'outputs of the box head were recorded, expected {layers} and 1'
            )
        last = slice(-detector.num_queries, None)
        hidden, logits, boxes = (tensor[:, last] for tensor in self._outputs[0])
        competing = not detector.bbox_head.loss_cls.use_sigmoid
        return QueryStates(
            queries=[query[:, last] for query, _ in self._attention],
            keys=[key[:, last] for _, key in self._attention],
            hidden=hidden,
            logits=logits,
            probs=logits.softmax(dim=-1)[..., :-1] if competing else logits.sigmoid(),
            boxes=boxes,
        )


@contextmanager
def recorded_queries(detector: Any) -> Iterator[QueryRecorder]:
    """Record one forward pass of a detector for which :func:`decoder_of` holds.

    Example:
        >>> with recorded_queries(detector) as recorder:
        ...     losses = detector.loss(batch_inputs, data_samples)
        >>> states = recorder.states(detector)
    """
    recorder = QueryRecorder()
    with ExitStack() as hooks:
        for layer in detector.decoder.layers:
            handle = layer.self_attn.attn.register_forward_pre_hook(
                recorder.on_attention, with_kwargs=True
            )
            hooks.callback(handle.remove)
        handle = detector.bbox_head.register_forward_hook(recorder.on_box_head, with_kwargs=True)
        hooks.callback(handle.remove)
        yield recorder


def pixel_boxes(boxes: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Boxes (..., 4) of the decoder, relative centre and size, as xyxy in pixels of an image."""
    height, width = shape[:2]
    centre, half = boxes[..., :2], boxes[..., 2:] / 2
    size = boxes.new_tensor([width, height])
    return torch.cat([(centre - half) * size, (centre + half) * size], dim=-1)
