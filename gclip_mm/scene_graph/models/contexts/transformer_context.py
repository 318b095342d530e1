"""Context by Transformer encoders over the set of objects."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from mmdet.registry import MODELS
from torch import Tensor, nn
from torch.nn import functional as F

from .base import BaseContext, PairComposer
from .sequences import Padding, image_index


@MODELS.register_module()
class TransformerContext(BaseContext):
    """Two Transformer encoders over the objects of an image: for labels, then for relations.

    There is no position encoding, since the features include the box. The context is therefore
    equivariant to the order of the objects.

    Args:
        in_dim: Size of an object's feature vector. The relation head sets it.
        union_channels: Channels of the union maps. The relation head sets it.
        hidden_dim: Width of the encoders, and of ``obj_ctx`` and ``edge_ctx`` rows.
        num_layers: Layers of the object encoder.
        num_edge_layers: Layers of the relation encoder.
        num_heads: Attention heads; must divide ``hidden_dim``.
        ffn_dim: Width of the feed-forward layers.
        norm: ``'pre'`` or ``'post'``: layer normalisation before or after each block (Xiong et
            al., arXiv 2002.04745). The original Transformer uses ``'post'``, which needs
            learning-rate warm-up.
        dropout: Dropout of the encoders.

    Raises:
        ValueError: ``norm`` is unknown, or ``num_heads`` does not divide ``hidden_dim``.

    Example:
        >>> relation_head = dict(context=dict(
        ...     type='TransformerContext', hidden_dim=512, norm='pre', num_layers=4))
    """

    def __init__(
        self,
        in_dim: int,
        union_channels: int,
        hidden_dim: int = 512,
        num_layers: int = 4,
        num_edge_layers: int = 2,
        num_heads: int = 8,
        ffn_dim: int = 2048,
        norm: str = 'pre',
        dropout: float = 0.1,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(in_dim, union_channels, hidden_dim, hidden_dim, init_cfg)
        if norm not in ('pre', 'post'):
            raise ValueError(f"norm must be 'pre' or 'post', got {norm!r}")
        if hidden_dim % num_heads:
            raise ValueError(f'num_heads={num_heads} does not divide hidden_dim={hidden_dim}')

        def encoder(layers: int) -> nn.TransformerEncoder:
            layer = nn.TransformerEncoderLayer(
                hidden_dim,
                num_heads,
                ffn_dim,
                dropout,
                batch_first=True,
                norm_first=norm == 'pre',
            )
            # Pre-norm layers do not normalise their sum, so the stack has to.
            final = nn.LayerNorm(hidden_dim) if norm == 'pre' else None
            return nn.TransformerEncoder(layer, layers, final, enable_nested_tensor=False)

        self.obj_in = nn.Linear(in_dim, hidden_dim)
        self.obj_encoder = encoder(num_layers)
        self.edge_in = nn.Linear(in_dim + hidden_dim, hidden_dim)
        self.edge_encoder = encoder(num_edge_layers)
        self.compose = PairComposer(hidden_dim, hidden_dim)
        for stack in (self.obj_encoder, self.edge_encoder):
            for param in stack.parameters():
                # nn.TransformerEncoder copies one layer; reinitialise, so that layers differ.
                if param.dim() > 1:
                    nn.init.xavier_uniform_(param)

    def forward(
        self,
        obj_feats: Tensor,
        boxes: Tensor,
        num_objs: Sequence[int],
        union_feats: Tensor,
        pairs: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """See :meth:`BaseContext.forward`; both outputs have ``hidden_dim`` columns."""
        if len(obj_feats) == 0:
            empty = obj_feats.new_zeros(0, self.out_dim)
            return empty, empty.new_zeros(0, self.edge_dim)
        padding = Padding(image_index(num_objs, boxes.device))
        obj_ctx = self._encode(self.obj_encoder, self.obj_in(obj_feats), padding)
        rows = self.edge_in(torch.cat([obj_feats, obj_ctx], dim=1))
        states = self._encode(self.edge_encoder, rows, padding)
        return obj_ctx, self.compose(states, pairs)

    @staticmethod
    def _encode(encoder: nn.TransformerEncoder, rows: Tensor, padding: Padding) -> Tensor:
        if torch.onnx.is_in_onnx_export():
            return _encode_one(encoder, rows)
        return padding.unpad(encoder(padding.pad(rows), src_key_padding_mask=~padding.mask))


def _encode_one(encoder: nn.TransformerEncoder, rows: Tensor) -> Tensor:
    """What ``encoder`` returns in eval mode for the objects (N, D) of one image.

    ``nn.MultiheadAttention`` keeps N as a constant in an exported graph.
    """
    for layer in encoder.layers:
        if layer.norm_first:
            rows = rows + _attend(layer.self_attn, layer.norm1(rows))
            rows = rows + _feed_forward(layer, layer.norm2(rows))
        else:
            rows = layer.norm1(rows + _attend(layer.self_attn, rows))
            rows = layer.norm2(rows + _feed_forward(layer, rows))
    return rows if encoder.norm is None else encoder.norm(rows)


def _attend(attention: nn.MultiheadAttention, rows: Tensor) -> Tensor:
    """Self-attention among rows (N, D)."""
    projected = F.linear(rows, attention.in_proj_weight, attention.in_proj_bias)
    heads = projected.reshape(-1, 3, attention.num_heads, attention.head_dim).permute(1, 2, 0, 3)
    weights = (heads[0] * attention.head_dim**-0.5 @ heads[1].transpose(1, 2)).softmax(dim=-1)
    joined = (weights @ heads[2]).transpose(0, 1).reshape(-1, attention.embed_dim)
    return attention.out_proj(joined)


def _feed_forward(layer: nn.TransformerEncoderLayer, rows: Tensor) -> Tensor:
    return layer.linear2(layer.activation(layer.linear1(rows)))
