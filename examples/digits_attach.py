"""Gradient clipping in a plain PyTorch loop: handwritten digits, clipped by value at 0.1.

Needs torch and scikit-learn, which ships the data set: ``python examples/digits_attach.py``.
configs/digits/small-cnn_value_digits.py is the same training as an MMEngine config.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

sys.path.insert(
    0, str(Path(__file__).resolve().parents[1])
)  # run from a checkout without installation

import gclip_mm
from gclip_mm.datasets.digits import load_digits


def build_network() -> nn.Sequential:
    """Map images (N, 1, 32, 32) to logits (N, 10)."""
    return nn.Sequential(
        *(nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(64 * 8 * 8, 128), nn.ReLU(), nn.Linear(128, 10)),
    )


def train(network: nn.Module, loader: DataLoader, epochs: int) -> dict[str, float]:
    """Train and print loss and clipping statistics; return the statistics of the last step."""
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
    clip = gclip_mm.attach(optimizer, dict(type='ValueClip', clip_value=0.1))
    for epoch in range(epochs):
        for images, labels in loader:
            optimizer.zero_grad()
            loss = F.cross_entropy(network(images), labels)
            loss.backward()
            optimizer.step()  # clips the gradients first
        norm, clipped = clip.stats()['grad_norm'], clip.stats()['clip_fraction']
        print(f'epoch {epoch + 1}: loss {loss:.4f}, norm {norm:.3f}, clipped {clipped:.2%}')
    return clip.stats()


def main(epochs: int = 5) -> float:
    """Train and return the accuracy on the test digits."""
    torch.manual_seed(0)
    network = build_network()
    loader = DataLoader(TensorDataset(*load_digits('train')), batch_size=64, shuffle=True)
    train(network, loader, epochs)
    images, labels = load_digits('test')
    accuracy = (network(images).argmax(dim=1) == labels).float().mean().item()
    print(f'accuracy on {len(labels)} digits never seen: {accuracy:.2%}')
    return accuracy


if __name__ == '__main__':
    main()
