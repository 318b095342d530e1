"""Files with the predictions and the ground truth of a test set."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.evaluator import DumpResults

from .metric import SceneGraphMetric

#: Key of each data sample that holds what all of them share.
META = 'scene_graph_meta'


class DumpSceneGraphs(DumpResults):
    """Dumps data samples with their ground truth, which ``gclip sg-eval`` reads.

    The file is a list of data samples as dicts, as ``DumpResults`` of MMEngine writes, with the
    same additional entry in each: the protocol, the names of the data set, its convention, and the
    training triplets and counts that the metric knows.

    Args:
        metric: The metric of the same evaluation.
        out_file_path: File to write, ``.pkl`` or ``.pickle``.
    """

    def __init__(self, metric: SceneGraphMetric, out_file_path: str) -> None:
        super().__init__(out_file_path=out_file_path)
        self.metric = metric

    def compute_metrics(self, results: list) -> dict:
        """Write the file; returns no metric."""
        known, meta = self.metric.references, self.metric.dataset_meta or {}
        shared: dict[str, Any] = dict(
            protocol=self.metric.protocol,
            convention=self.metric.convention or meta.get('convention'),
            classes=list(meta.get('classes') or ()),
            predicates=list(meta.get('predicates') or ()),
            seen=getattr(known.zero_shot, 'seen', None),
            zero_shot=None if hasattr(known.zero_shot, 'seen') else known.zero_shot,
            counts=known.counts,
            groups=known.groups,
        )
        # One object: pickle stores it once, however many samples refer to it.
        return super().compute_metrics([{**sample, META: shared} for sample in results])


def load_dump(file: str | Path) -> tuple[list[dict], dict[str, Any]]:
    """Data samples of a file of :class:`DumpSceneGraphs`, and what they share.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: It is not such a file.
    """
    hint = 'write it with `gclip test CONFIG CHECKPOINT --out FILE` for a scene-graph model'
    try:
        with open(file, 'rb') as stream:
            samples = pickle.load(stream)
    except FileNotFoundError as error:
        raise FileNotFoundError(f'{file} does not exist: {hint}') from error
    except Exception as error:  # whatever a damaged pickle raises
        raise ValueError(f'{file} is not a readable pickle ({error}): {hint}') from error
    valid = isinstance(samples, list) and samples
    if not valid or not all(isinstance(s, Mapping) and META in s for s in samples):
        raise ValueError(f'{file} holds no scene graphs with their ground truth: {hint}')
    return samples, samples[0][META]
