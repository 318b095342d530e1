"""Scene-graph metrics as an MMEngine metric."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from mmdet.evaluation import CocoMetric
from mmdet.registry import METRICS
from mmengine.evaluator import BaseMetric
from mmengine.fileio import get_local_path
from mmengine.logging import MMLogger
from terminaltables import AsciiTable

from ..datasets.json_file import read_json
from ..datasets.relation_index import RelationIndex
from .masks import by_masks, check_match
from .matching import ImageMatch, match_image
from .recall import CONVENTIONS, as_triplet_set, check_options, predicate_recall, summarize
from .samples import ground_truth_of, prediction_of, to_numpy
from .scene import scene_accuracy, scene_rank

PROTOCOLS = ('predcls', 'sgcls', 'sgdet')


@METRICS.register_module()
class SceneGraphMetric(BaseMetric):
    """Recall of relations, scene accuracy, and COCO mAP of the boxes.

    :func:`~gclip_mm.scene_graph.evaluation.scene_graph_recall` defines the recall metrics.
    Conventions differ between papers; ``convention`` selects a published one
    (:data:`~gclip_mm.scene_graph.evaluation.CONVENTIONS`). Data sets made by the converters of this
    package have their convention in the metainfo, so that numbers on VG150, for example, are
    comparable with the literature by default.

    Each image is matched in ``process``; only a few integers per relation are kept and sent between
    processes.

    Reads from a data sample: ``pred_instances`` (``bboxes`` (N, 4) xyxy in the original image,
    ``labels``, ``scores``), ``pred_relations`` (``pairs`` (M, 2), ``scores`` (M, P) without
    background), ``pred_scene`` (``score`` (S,), optional); ``gt_instances`` (in pixels of the
    network's input, divided by ``scale_factor`` here), ``gt_relations`` (``pairs``, ``labels``),
    ``gt_scene`` (``label``, optional).

    Args:
        protocol: Protocol of the model: 'predcls', 'sgcls' or 'sgdet'. Pair accuracy is published
            for the first two only, and not reported for 'sgdet'.
        convention: 'vg150', 'motifs', 'psg' or 'openimages'. None: the convention in the data
            set's metainfo, or the defaults of ``scene_graph_recall`` if it has none.
        ks: Values of K in R@K.
        iou_thr: Minimum IoU of matching boxes.
        iou_plus_one, empty_pred, average, predicates_per_pair: As for ``scene_graph_recall``; they
            override the convention.
        zero_shot_triplets: (subject label, object label, predicate label) triplets that do not
            occur in training.
        train_ann_file: Annotation file of the training set, instead of ``zero_shot_triplets``: all
            triplets that it does not contain are zero-shot.
        box_metric: Report COCO mAP of the boxes. None: True except in PredCls, where boxes and
            labels are given.
        classwise: Log a table with the recall of each predicate and report it as
            ``<predicate>_R@K`` and ``<predicate>_ngR@K``.
        match: What overlaps: ``'box'``, ``'mask'`` (OpenPSG, arXiv 2207.11247) or ``'single_mask'``
            (the corrected protocol of arXiv 2407.09216); see :mod:`.masks`. Masks need
            ``LoadSceneGraphAnnotations(with_seg=True)`` and, in SGDet, a detector with masks.
        collect_device, prefix, collect_dir: As for :class:`mmengine.evaluator.BaseMetric`.

    Returns by ``evaluate``: ``sg/R@K``, ``sg/mR@K``, ``sg/ngR@K``, ``sg/ngmR@K``, ``sg/A@K``,
    ``sg/zR@K``, ``sg/ngzR@K``; ``sg/scene_top1``, ``sg/scene_top5`` if model and data have
    scenes; ``sg/bbox_mAP``, ``sg/bbox_mAP_50`` and so on.

    Raises:
        ValueError: An option is unknown, or a data sample lacks predictions or ground truth.

    Example:
        >>> val_evaluator = dict(type='SceneGraphMetric', protocol='predcls',
        ...                      train_ann_file='data/vg150/train.json')
        >>> default_hooks = dict(checkpoint=dict(save_best='sg/mR@50', rule='greater'))
    """

    default_prefix = 'sg'

    def __init__(
        self,
        protocol: str = 'sgdet',
        convention: str | None = None,
        ks: Sequence[int] = (20, 50, 100),
        iou_thr: float = 0.5,
        iou_plus_one: bool | None = None,
        empty_pred: str | None = None,
        average: str | None = None,
        predicates_per_pair: int | None = None,
        zero_shot_triplets: Collection[tuple[int, int, int]] | None = None,
        train_ann_file: str | None = None,
        box_metric: bool | None = None,
        classwise: bool = False,
        match: str = 'box',
        collect_device: str = 'cpu',
        prefix: str | None = None,
        collect_dir: str | None = None,
    ) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix, collect_dir=collect_dir)
        self.protocol = str(getattr(protocol, 'value', protocol)).lower()
        if self.protocol not in PROTOCOLS:
            raise ValueError(f'protocol must be one of {PROTOCOLS}, got {protocol!r}')
        self.convention = _checked_convention(convention)
        given = dict(
            iou_plus_one=iou_plus_one,
            empty_pred=empty_pred,
            average=average,
            predicates_per_pair=predicates_per_pair,
        )
        self.overrides = {key: value for key, value in given.items() if value is not None}
        self.ks = tuple(ks)
        self.iou_thr = iou_thr
        self._options()  # validates now and not after the first epoch
        if zero_shot_triplets is not None and train_ann_file is not None:
            raise ValueError('set either zero_shot_triplets or train_ann_file, not both')
        self.zero_shot: Any = as_triplet_set(zero_shot_triplets)
        self.train_ann_file = train_ann_file
        self.classwise = classwise
        self.match = check_match(match)
        self.box_metric = self.protocol != 'predcls' if box_metric is None else box_metric
        self._coco: Any = CocoMetric(metric='bbox', prefix='coco') if self.box_metric else None

    def _options(self) -> dict[str, Any]:
        """Keyword arguments of ``scene_graph_recall`` except ``ks`` and ``iou_thr``."""
        convention = self.convention
        if convention is None:
            convention = _checked_convention((self.dataset_meta or {}).get('convention'))
        defaults = dict(
            iou_plus_one=False, empty_pred='zero', average='image', predicates_per_pair=None
        )
        options = {**defaults, **CONVENTIONS.get(convention or '', {}), **self.overrides}
        check_options(
            self.ks,
            self.iou_thr,
            options['empty_pred'],
            options['average'],
            options['predicates_per_pair'],
        )
        return options

    def _zero_shot(self) -> Any:
        if self.zero_shot is None and self.train_ann_file is not None:
            self.zero_shot = _Unseen(_triplets_of_file(self.train_ann_file, self.dataset_meta))
        return self.zero_shot

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Match a batch.

        Args:
            data_batch: Unused.
            data_samples: Data samples as dicts, as passed by MMEngine's evaluator.
        """
        options = self._options()
        names = (self.dataset_meta or {}).get('predicates')
        for sample in data_samples:
            name = f'image {sample.get("img_path") or sample.get("img_id")}'
            truth, prediction = ground_truth_of(sample, name), prediction_of(sample, name)
            matched, iou = prediction, None
            if self.match != 'box':
                given = self.protocol != 'sgdet'
                matched, iou = by_masks(
                    sample, prediction, truth, self.match, given, self.iou_thr, name
                )
            match = match_image(
                matched,
                truth,
                max_k=max(self.ks),
                iou_thr=self.iou_thr,
                num_predicates=len(names) if names else None,
                iou_plus_one=options['iou_plus_one'],
                zero_shot_triplets=self._zero_shot(),
                predicates_per_pair=options['predicates_per_pair'],
                name=name,
                iou=iou,
            )
            # MMEngine rebuilds nested results by type, which fails for a NamedTuple.
            result: dict[str, Any] = dict(match=match._asdict(), scene_rank=None, boxes=None)
            if 'gt_scene' in sample and 'pred_scene' in sample:
                scores = to_numpy(sample['pred_scene']['score'])
                result['scene_rank'] = scene_rank(scores, int(sample['gt_scene']['label']))
            if self._coco is not None:
                result['boxes'] = self._box_result(sample, truth, prediction)
            self.results.append(result)

    def _box_result(self, sample: dict, truth: dict, prediction: dict) -> tuple[dict, dict]:
        """Result of ``CocoMetric`` for one image."""
        anns = [
            dict(bbox=box, bbox_label=label, ignore_flag=ignored)
            for boxes, labels, ignored in (
                (truth['bboxes'], truth['labels'], 0),
                (truth['ignored_bboxes'], truth['ignored_labels'], 1),
            )
            for box, label in zip(boxes.tolist(), labels.tolist(), strict=True)
        ]
        as_tensors = {k: torch.from_numpy(prediction[k]) for k in ('bboxes', 'labels', 'scores')}
        self._coco.process({}, [{**sample, 'pred_instances': as_tensors, 'instances': anns}])
        return self._coco.results.pop()

    def compute_metrics(self, results: list[dict]) -> dict[str, float]:
        """Compute the metrics from the matched images."""
        logger = MMLogger.get_current_instance()
        options = self._options()
        shared = dict(empty_pred=options['empty_pred'], average=options['average'])
        logger.info(
            f'Scene graphs: protocol={self.protocol}, match={self.match}, iou_thr={self.iou_thr}, '
            + ', '.join(f'{key}={value}' for key, value in options.items())
        )
        matches = [ImageMatch(**result['match']) for result in results]
        metrics = summarize(matches, self.ks, zero_shot=self._zero_shot() is not None, **shared)
        if not any(len(match.predicates) for match in matches):
            logger.warning(
                f'none of the {len(results)} images has an annotated relation: recall is undefined'
            )
        if self.protocol == 'sgdet':
            metrics = {key: value for key, value in metrics.items() if not key.startswith('A@')}
        if self.classwise:
            metrics.update(self._classwise(matches, shared, logger))
        ranks = [r['scene_rank'] for r in results if r['scene_rank'] is not None]
        if ranks:
            metrics.update(scene_accuracy(ranks))
        if self._coco is not None and results:
            metrics.update(self._box_metrics([result['boxes'] for result in results]))
        return metrics

    def _box_metrics(self, results: list[tuple[dict, dict]]) -> dict[str, float]:
        if not any(len(prediction['bboxes']) for _, prediction in results):
            return {'bbox_mAP': 0.0, 'bbox_mAP_50': 0.0}  # COCO's tools fail without any box
        self._coco.dataset_meta = self.dataset_meta
        metrics = dict(self._coco.compute_metrics(results))
        # Otherwise CocoMetric would reuse the ground truth of its first evaluation.
        self._coco._coco_api = self._coco.cat_ids = self._coco.img_ids = None
        return metrics

    def _classwise(
        self, matches: list[ImageMatch], shared: dict, logger: MMLogger
    ) -> dict[str, float]:
        names = (self.dataset_meta or {}).get('predicates')
        if not names:
            raise ValueError('classwise=True needs predicate names in the metainfo')
        recall = predicate_recall(matches, self.ks, len(names), **shared)
        count = recall.pop('count')
        table = [['predicate', 'relations', *recall]]
        for i, name in enumerate(names):
            table.append([name, str(count[i]), *(f'{values[i]:.3f}' for values in recall.values())])
        logger.info('\n' + AsciiTable(table).table)
        return {
            f'{name}_{key}': float(values[i])
            for key, values in recall.items()
            for i, name in enumerate(names)
        }


class _Unseen:
    """Complement of a set of triplets; supports ``in`` only."""

    def __init__(self, seen: set[tuple[int, int, int]]) -> None:
        self.seen = seen

    def __contains__(self, triplet: tuple[int, int, int]) -> bool:
        return triplet not in self.seen


def _checked_convention(name: str | None) -> str | None:
    if name is not None and name not in CONVENTIONS:
        raise ValueError(f'convention must be None or one of {sorted(CONVENTIONS)}, got {name!r}')
    return name


def _triplets_of_file(ann_file: str, metainfo: dict | None) -> set[tuple[int, int, int]]:
    """Triplets of an annotation file, with the labels of the metainfo."""
    with get_local_path(ann_file) as path:
        content = read_json(path, str(ann_file))
    return RelationIndex(content, str(ann_file), metainfo or {}).triplets(content)
