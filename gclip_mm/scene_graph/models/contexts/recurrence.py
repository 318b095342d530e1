"""Recurrent layers over sequences of unequal length."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from .sequences import Padding

CELLS: dict[str, Callable[..., nn.RNNBase]] = {'rnn': nn.RNN, 'gru': nn.GRU, 'lstm': nn.LSTM}


class Recurrence(nn.Module):
    """A stack of recurrent layers whose state is reset for every sequence.

    Args:
        cell: ``'rnn'`` (tanh), ``'gru'`` or ``'lstm'``.
        in_dim: Size of the input rows.
        out_dim: Size of the output rows, both directions together.
        num_layers: Layers.
        bidirectional: Run in both directions; ``out_dim`` must then be even.
        dropout: Dropout between layers.

    Raises:
        ValueError: An unknown cell, or an odd ``out_dim`` for two directions.
    """

    def __init__(
        self,
        cell: str,
        in_dim: int,
        out_dim: int,
        num_layers: int = 1,
        bidirectional: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if cell not in CELLS:
            raise ValueError(f'cell must be one of {tuple(CELLS)}, got {cell!r}')
        if bidirectional and out_dim % 2:
            raise ValueError(f'bidirectional=True needs an even size, got hidden_dim={out_dim}')
        self.out_dim = out_dim
        self.rnn = CELLS[cell](
            in_dim,
            out_dim // 2 if bidirectional else out_dim,
            num_layers,
            batch_first=True,
            bidirectional=bidirectional,
            # PyTorch warns about dropout with a single layer.
            dropout=dropout if num_layers > 1 else 0.0,
        )
        for name, param in self.rnn.named_parameters():
            if name.startswith('weight_hh'):
                # Orthogonal weights preserve the norm of the state (Saxe et al., arXiv 1312.6120).
                for block in param.data.chunk(param.shape[0] // param.shape[1]):
                    nn.init.orthogonal_(block)

    def forward(self, rows: Tensor, group: Tensor) -> Tensor:
        """Run over each sequence.

        Args:
            rows: (N, in_dim), the sequences one after another.
            group: (N,) int64 ascending, the sequence of each row.

        Returns:
            (N, out_dim), in the order of ``rows``.
        """
        if len(rows) == 0:
            return rows.new_zeros(0, self.out_dim)
        padding = Padding(group)
        packed = pack_padded_sequence(
            padding.pad(rows), padding.lengths.cpu(), batch_first=True, enforce_sorted=False
        )
        return padding.unpad(pad_packed_sequence(self.rnn(packed)[0], batch_first=True)[0])


def invert(order: Tensor) -> Tensor:
    """Inverse of the permutation ``order``, (N,) int64."""
    inverse = torch.empty_like(order)
    inverse[order] = torch.arange(order.shape[0], device=order.device)
    return inverse
