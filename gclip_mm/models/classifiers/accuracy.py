"""Top-1 accuracy of a classifier."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmengine.evaluator import BaseMetric
from mmengine.registry import METRICS


@METRICS.register_module()
class Accuracy(BaseMetric):
    """Share of the samples whose highest score is at the label: ``accuracy/top1``, in percent.

    Input is the prediction of :class:`SmallCNN`: ``dict(scores=(C,), label=())`` for each sample.
    """

    default_prefix = 'accuracy'

    def process(self, data_batch: Any, data_samples: Sequence[dict[str, Any]]) -> None:
        """Count one batch."""
        for sample in data_samples:
            self.results.append(int(sample['scores'].argmax() == sample['label']))

    def compute_metrics(self, results: list[int]) -> dict[str, float]:
        """Average over all batches."""
        return dict(top1=100 * sum(results) / len(results))
