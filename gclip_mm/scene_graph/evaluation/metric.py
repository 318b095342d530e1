"""Scene-graph metrics as an MMEngine metric."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
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
from .options import CONVENTIONS, OPTIONS, RecallOptions, check_ks
from .predicate_groups import NAMED, predicate_groups
from .recall import as_triplet_set, predicate_recall, summarize
from .samples import ground_truth_of, prediction_of, to_numpy
from .scene import scene_accuracy, scene_rank
from .triplet_file import load_triplets

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
        convention: A name in :data:`~gclip_mm.scene_graph.evaluation.CONVENTIONS`. None: the
            convention in the data set's metainfo, or the defaults of ``scene_graph_recall`` if it
            has none.
        ks: Values of K in R@K.
        iou_thr: Minimum IoU of matching boxes.
        zero_shot_triplets: (subject label, object label, predicate label) triplets that do not
            occur in training, or a file with them: JSON, ``.npy``, or ``.pytorch`` of
            Scene-Graph-Benchmark (:func:`~gclip_mm.scene_graph.evaluation.load_triplets`).
        train_ann_file: Annotation file of the training set. Without ``zero_shot_triplets``, all
            triplets that it does not contain are zero-shot. It is read before training.
        predicate_groups: Also report the mean recall of groups of predicates: ``'thirds'``, head,
            body and tail by the counts in ``train_ann_file``; ``'bgnn'``, the published groups of
            VG150; or a dict of group name -> predicate names.
        box_metric: Report COCO mAP of the boxes. None: True except in PredCls, where boxes and
            labels are given.
        classwise: Log a table with the recall of each predicate and report it as
            ``<predicate>_R@K`` and ``<predicate>_ngR@K``.
        match: What overlaps: ``'box'``, ``'mask'`` (OpenPSG, arXiv 2207.11247) or ``'single_mask'``
            (the corrected protocol of arXiv 2407.09216); see :mod:`.masks`. Masks need
            ``LoadSceneGraphAnnotations(with_seg=True)`` and, in SGDet, a detector with masks.
            Phrases are matched by boxes only, so masks turn off the ``phrase`` of a convention.
        collect_device, prefix, collect_dir: As for :class:`mmengine.evaluator.BaseMetric`.
        **options: Fields of :class:`~gclip_mm.scene_graph.evaluation.RecallOptions`, such as
            ``absent='skip'``; they override the convention.

    Returns by ``evaluate``: ``sg/R@K``, ``sg/mR@K``, ``sg/F1@K``, ``sg/ngR@K``, ``sg/ngmR@K``,
    ``sg/A@K``, ``sg/ngA@K``, ``sg/zR@K``, ``sg/ngzR@K``, ``sg/head_mR@K``; in SGDet, with
    ``phrase``, ``sg/phrR@K`` and so on; ``sg/scene_top1``, ``sg/scene_top5`` if model and data
    have scenes; ``sg/bbox_mAP``, ``sg/bbox_mAP_50`` and so on.

    Raises:
        ValueError: An option is unknown, or a data sample lacks predictions or ground truth.
        FileNotFoundError: ``train_ann_file`` or the file of triplets does not exist.

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
        zero_shot_triplets: Collection[tuple[int, int, int]] | str | None = None,
        train_ann_file: str | None = None,
        predicate_groups: str | Mapping[str, Sequence[str]] | None = None,
        box_metric: bool | None = None,
        classwise: bool = False,
        match: str = 'box',
        collect_device: str = 'cpu',
        prefix: str | None = None,
        collect_dir: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix, collect_dir=collect_dir)
        self.protocol = str(getattr(protocol, 'value', protocol)).lower()
        if self.protocol not in PROTOCOLS:
            raise ValueError(f'protocol must be one of {PROTOCOLS}, got {protocol!r}')
        self.convention = _checked_convention(convention)
        self.match = check_match(match)
        unknown = sorted(set(options) - set(OPTIONS))
        if unknown:
            raise ValueError(
                f'SceneGraphMetric has no key {unknown[0]!r}; the keys of the recall are {OPTIONS}'
            )
        # As in a config that inherits another one, None stands for the convention's value.
        self.overrides = {key: value for key, value in options.items() if value is not None}
        self.ks = check_ks(ks, iou_thr)
        self.iou_thr = iou_thr
        self._options()  # validates now and not after the first epoch
        if isinstance(predicate_groups, str) and predicate_groups not in NAMED:
            raise ValueError(
                f'predicate_groups must be one of {NAMED} or a dict, got {predicate_groups!r}'
            )
        if predicate_groups == 'thirds' and train_ann_file is None:
            raise ValueError("predicate_groups='thirds' needs train_ann_file, to count predicates")
        self.predicate_groups = predicate_groups
        self.zero_shot_file: str | None = None
        if isinstance(zero_shot_triplets, str):
            self.zero_shot_file, zero_shot_triplets = zero_shot_triplets, None
        self._given_zero_shot = as_triplet_set(zero_shot_triplets)
        self.train_ann_file = train_ann_file
        self._references: References | None = None
        self.classwise = classwise
        self.box_metric = self.protocol != 'predcls' if box_metric is None else box_metric
        self._coco: Any = CocoMetric(metric='bbox', prefix='coco') if self.box_metric else None

    @property
    def dataset_meta(self) -> dict | None:
        """Metainfo of the data set. MMEngine sets it before training, which reads all files."""
        return self._dataset_meta

    @dataset_meta.setter
    def dataset_meta(self, meta: dict) -> None:
        self._dataset_meta = meta
        self._options()
        self._references = self._read_references()

    @property
    def references(self) -> References:
        """What is known of the training set; read once."""
        if self._references is None:
            self._references = self._read_references()
        return self._references

    def _options(self) -> RecallOptions:
        convention = self.convention
        if convention is None:
            convention = _checked_convention((self.dataset_meta or {}).get('convention'))
        published = dict(CONVENTIONS.get(convention or '', {}))
        if self.match != 'box':
            if self.overrides.get('phrase'):
                raise ValueError(f"phrase=True needs match='box', got match={self.match!r}")
            published['phrase'] = False
        return RecallOptions(**{**published, **self.overrides})

    def _read_references(self) -> References:
        meta = self.dataset_meta or {}
        zero_shot: Any = self._given_zero_shot
        if self.zero_shot_file is not None:
            names = (meta.get('classes') or (), meta.get('predicates') or ())
            zero_shot = load_triplets(self.zero_shot_file, *names)
        counts = None
        if self.train_ann_file is not None:
            seen, counts = _training_set(self.train_ann_file, meta)
            zero_shot = Unseen(seen) if zero_shot is None else zero_shot
        groups = None
        if self.predicate_groups is not None and meta.get('predicates'):
            groups = predicate_groups(self.predicate_groups, meta['predicates'], counts)
        return References(zero_shot, counts, groups)

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
                zero_shot_triplets=self.references.zero_shot,
                options=options,
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
        options, references = self._options(), self.references
        logger.info(
            f'Scene graphs: protocol={self.protocol}, match={self.match}, iou_thr={self.iou_thr}, '
            + ', '.join(f'{key}={getattr(options, key)}' for key in OPTIONS)
        )
        matches = [ImageMatch(**result['match']) for result in results]
        names = (self.dataset_meta or {}).get('predicates')
        metrics = summarize(
            matches,
            self.ks,
            options,
            num_predicates=len(names) if names else None,
            zero_shot=references.zero_shot is not None,
            predicate_groups=references.groups,
        )
        if not any(len(match.predicates) for match in matches):
            logger.warning(
                f'none of the {len(results)} images has an annotated relation: recall is undefined'
            )
        # Pair accuracy needs given boxes, and phrases are published for detected ones.
        hidden = ('A@', 'ngA@') if self.protocol == 'sgdet' else ('phr', 'ngphr')
        metrics = {key: value for key, value in metrics.items() if not key.startswith(hidden)}
        if self.classwise:
            metrics.update(self._classwise(matches, options, logger))
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
        self, matches: list[ImageMatch], options: RecallOptions, logger: MMLogger
    ) -> dict[str, float]:
        names = (self.dataset_meta or {}).get('predicates')
        if not names:
            raise ValueError('classwise=True needs predicate names in the metainfo')
        recall = predicate_recall(matches, self.ks, len(names), options)
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


class Unseen:
    """Complement of a set of triplets; supports ``in`` only."""

    def __init__(self, seen: set[tuple[int, int, int]]) -> None:
        self.seen = seen

    def __contains__(self, triplet: object) -> bool:
        return triplet not in self.seen


class References(NamedTuple):
    """What a metric knows of the training set.

    Attributes:
        zero_shot: The zero-shot triplets, a set or :class:`Unseen`; None: not reported.
        counts: (P,) int64, relations of each predicate; None without training annotations.
        groups: Group name -> predicate labels; None: not reported.
    """

    zero_shot: Any
    counts: np.ndarray | None
    groups: dict[str, list[int]] | None


def _checked_convention(name: str | None) -> str | None:
    if name is not None and name not in CONVENTIONS:
        raise ValueError(f'convention must be None or one of {sorted(CONVENTIONS)}, got {name!r}')
    return name


def _training_set(ann_file: str, metainfo: dict) -> tuple[set[tuple[int, int, int]], np.ndarray]:
    """Triplets and predicate counts of an annotation file, with the labels of the metainfo."""
    try:
        with get_local_path(ann_file) as path:
            content = read_json(path, str(ann_file))
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f'train_ann_file={str(ann_file)!r} of the evaluator does not exist: convert the '
            'training set, or set train_ann_file=None, without zero-shot recall'
        ) from error
    index = RelationIndex(content, str(ann_file), metainfo)
    return index.triplets(content), index.predicate_counts()
