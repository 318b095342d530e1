"""The metrics of Open Images visual relationship detection as an MMEngine metric."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmdet.registry import METRICS
from mmengine.evaluator import BaseMetric

from .matching import ImageMatch, match_image
from .open_images import ImageDetections, match_detections, summarize_detections
from .options import CONVENTIONS, RecallOptions, check_ks
from .recall import summarize
from .samples import ground_truth_of, prediction_of

_OPTIONS = RecallOptions(**CONVENTIONS['openimages'])


@METRICS.register_module()
class OpenImagesVRDMetric(BaseMetric):
    """Recall and average precision of relations, as reported for Open Images.

    :func:`~gclip_mm.scene_graph.evaluation.open_images_vrd` defines the metrics. Papers on scene
    graphs report ``mR@50``, ``R@50``, ``wmAP_rel``, ``wmAP_phr`` and ``score_wtd`` (Li et al.,
    arXiv 2104.00308); ``mR@K`` is that of the convention 'openimages'.

    Reads the same fields of a data sample as :class:`SceneGraphMetric`, and can be used beside it.

    Args:
        ks: Values of K in R@K and mR@K.
        iou_thr: IoU that boxes have to exceed.
        ap_plus_one: As for :func:`~gclip_mm.scene_graph.evaluation.open_images_vrd`.
        collect_device, prefix, collect_dir: As for :class:`mmengine.evaluator.BaseMetric`.

    Returns by ``evaluate``: ``oi/R@K``, ``oi/mR@K``, ``oi/mAP_rel``, ``oi/wmAP_rel``,
    ``oi/mAP_phr``, ``oi/wmAP_phr``, ``oi/score``, ``oi/score_wtd``.

    Raises:
        ValueError: A data sample lacks predictions or ground truth, or the data set has no
            predicate names.

    Example:
        >>> val_evaluator = [
        ...     dict(type='SceneGraphMetric', protocol='sgdet'), dict(type='OpenImagesVRDMetric')]
    """

    default_prefix = 'oi'

    def __init__(
        self,
        ks: Sequence[int] = (50, 100),
        iou_thr: float = 0.5,
        ap_plus_one: bool | str = True,
        collect_device: str = 'cpu',
        prefix: str | None = None,
        collect_dir: str | None = None,
    ) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix, collect_dir=collect_dir)
        self.ks = check_ks(ks, iou_thr)
        self.iou_thr = iou_thr
        self.ap_plus_one = ap_plus_one
        RecallOptions(iou_plus_one=ap_plus_one)  # raises for an unknown value

    def _num_predicates(self) -> int:
        names = (self.dataset_meta or {}).get('predicates')
        if not names:
            raise ValueError('OpenImagesVRDMetric needs predicate names in the metainfo')
        return len(names)

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Match a batch.

        Args:
            data_batch: Unused.
            data_samples: Data samples as dicts, as passed by MMEngine's evaluator.
        """
        num_predicates = self._num_predicates()
        for sample in data_samples:
            name = f'image {sample.get("img_path") or sample.get("img_id")}'
            graphs = prediction_of(sample, name), ground_truth_of(sample, name)
            detections = match_detections(
                *graphs, num_predicates, self.iou_thr, self.ap_plus_one, name
            )
            match = match_image(
                *graphs,
                max_k=max(self.ks),
                iou_thr=self.iou_thr,
                num_predicates=num_predicates,
                options=_OPTIONS,
                name=name,
            )
            # MMEngine rebuilds nested results by type, which fails for a NamedTuple.
            self.results.append(dict(match=match._asdict(), detections=detections._asdict()))

    def compute_metrics(self, results: list[dict]) -> dict[str, float]:
        """Compute the metrics from the matched images."""
        num_predicates = self._num_predicates()
        matches = [ImageMatch(**result['match']) for result in results]
        recall = summarize(matches, self.ks, _OPTIONS, num_predicates=num_predicates)
        images = [ImageDetections(**result['detections']) for result in results]
        metrics = summarize_detections(images, num_predicates, self.ks)
        return {**metrics, **{f'mR@{k}': recall[f'mR@{k}'] for k in self.ks}}
