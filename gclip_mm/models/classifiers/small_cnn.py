"""A small classifier for examples and tests."""

from __future__ import annotations

from mmengine.model import BaseModel
from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.nn import functional as F


@MODELS.register_module()
class SmallCNN(BaseModel):
    """Convolutions of 32 and 64 channels, each followed by 2x2 pooling, and two linear layers.

    The hidden linear layer has 128 units.

    Args:
        num_classes (int): Defaults to 10.
        in_channels (int): Defaults to 1.
        size (int): Height and width of the input in pixels, a multiple of 4. Defaults to 32.

    Raises:
        ValueError: ``size`` is not a positive multiple of 4.

    Example:
        >>> model = dict(type='SmallCNN', num_classes=10)
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 1, size: int = 32) -> None:
        super().__init__()
        if size < 4 or size % 4:
            raise ValueError(f'size must be a positive multiple of 4, got {size}')
        self.network = nn.Sequential(
            nn.Conv2d(in_channels, 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(64 * (size // 4) ** 2, 128),
            nn.ReLU(),
            nn.Linear(128, num_classes),
        )

    def forward(
        self, inputs: Tensor, labels: Tensor | None = None, mode: str = 'tensor'
    ) -> Tensor | dict[str, Tensor] | list[dict[str, Tensor]]:
        """Scores, losses or predictions.

        Args:
            inputs (Tensor): Float (B, C, size, size).
            labels (Tensor, optional): int64 (B,); needed for 'loss' and 'predict'.
            mode (str): 'tensor', 'loss' or 'predict'.

        Returns:
            'tensor': scores (B, classes). 'loss': ``dict(loss=...)``, the mean cross entropy.
            'predict': ``dict(scores=(classes,), label=())`` for each sample.

        Raises:
            ValueError: An unknown mode, or no labels in the modes 'loss' and 'predict'.
        """
        scores = self.network(inputs)
        if mode == 'tensor':
            return scores
        if mode not in ('loss', 'predict'):
            raise ValueError(f"mode must be 'tensor', 'loss' or 'predict', got {mode!r}")
        if labels is None:
            raise ValueError(f'mode={mode!r} needs labels')
        if mode == 'loss':
            return dict(loss=F.cross_entropy(scores, labels))
        return [dict(scores=s, label=y) for s, y in zip(scores, labels, strict=True)]
