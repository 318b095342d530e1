"""SmallCNN and Accuracy."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from gclip_mm.models import Accuracy, SmallCNN


def test_layers_match_documentation():
    model = SmallCNN()
    shapes = [tuple(p.shape) for name, p in model.named_parameters() if name.endswith('weight')]
    assert shapes == [(32, 1, 3, 3), (64, 32, 3, 3), (128, 64 * 8 * 8), (10, 128)]
    assert model(torch.zeros(2, 1, 32, 32)).shape == (2, 10)


def test_forward_modes_return_scores_loss_and_predictions():
    torch.manual_seed(0)
    model = SmallCNN(num_classes=4, in_channels=3, size=8)
    images, labels = torch.randn(5, 3, 8, 8), torch.tensor([0, 1, 2, 3, 0])
    scores = model(images)
    loss = model(images, labels, mode='loss')['loss']
    torch.testing.assert_close(loss, F.cross_entropy(scores, labels))
    predictions = model(images, labels, mode='predict')
    torch.testing.assert_close(torch.stack([p['scores'] for p in predictions]), scores)
    with pytest.raises(ValueError, match='mode'):
        model(images, labels, mode='train')


@pytest.mark.parametrize('size', [0, 6, -4])
def test_size_not_multiple_of_4_raises(size):
    with pytest.raises(ValueError, match='multiple of 4'):
        SmallCNN(size=size)


def test_accuracy_is_percent_of_correct_samples():
    metric = Accuracy()
    scores = torch.eye(3)
    labels = [0, 1, 0]  # the third prediction is wrong
    samples = [dict(scores=s, label=torch.tensor(y)) for s, y in zip(scores, labels, strict=True)]
    metric.process(None, samples[:2])
    metric.process(None, samples[2:])
    assert metric.evaluate(3) == {'accuracy/top1': pytest.approx(200 / 3)}
