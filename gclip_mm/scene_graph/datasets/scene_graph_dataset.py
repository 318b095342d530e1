"""MMDetection data set for COCO JSON with relations and scene labels."""

from __future__ import annotations

import logging
import os.path as osp
from typing import Any

import numpy as np
from mmdet.datasets import CocoDataset
from mmdet.registry import DATASETS
from mmengine.fileio import get_local_path
from mmengine.logging import print_log

from ..transforms.flips import PredicateFlips
from .json_file import read_json
from .relation_index import RelationIndex

_FILTER_KEYS = ('filter_empty_gt', 'min_size', 'filter_empty_relations')


@DATASETS.register_module()
class SceneGraphDataset(CocoDataset):
    """Boxes, relations among them, and an optional scene label for each image.

    The annotation file is COCO JSON with three additional lists and an additional key in
    ``images``::

        {"images": [{"id": 7, "file_name": "7.jpg", "width": 640, "height": 480, "scene": 2}],
         "annotations": [{"id": 1, "image_id": 7, "category_id": 3, "bbox": [x, y, w, h],
                          "area": 120, "iscrowd": 0}, ...],
         "categories": [{"id": 3, "name": "dog"}, ...],
         "predicates": [{"id": 0, "name": "left of"}, ...],
         "scenes": [{"id": 2, "name": "beach"}, ...],
         "relations": [{"image_id": 7, "subject_id": 1, "object_id": 2, "predicate_id": 0}, ...]}

    ``subject_id`` and ``object_id`` are annotation ids of that image. A pair may have any number
    of relations. ``scenes``, and ``scene`` of any image, are optional. Ids need not be contiguous.
    ``gclip convert`` creates such files from a spreadsheet of your own, Visual Genome, PSG, Open
    Images, VRD and RelTR's files. Files of SGG-Benchmark, with ``rel_categories`` and
    ``rel_annotations`` in place of ``predicates`` and ``relations``, are read as they are.

    ``info.convention`` selects the metric convention under which results on these data are
    published, a name in :data:`gclip_mm.scene_graph.evaluation.CONVENTIONS`. It is copied to the
    metainfo, which ``SceneGraphMetric`` reads.

    Panoptic segments: an image may have ``pan_seg_file_name``, a PNG relative to
    ``data_prefix['seg']`` (or ``['img']``), and each of its annotations a ``segment_id`` in it.
    ``LoadSceneGraphAnnotations(with_seg=True)`` reads them. ``gclip convert psg`` keeps both.

    Class, predicate and scene names are read from the file, in its order, unless ``metainfo``
    sets them. Fewer names select a subset; predicates and scenes may be reordered. A relation is
    dropped if one of its boxes is: because its class is not selected, or because MMDetection
    considers the box invalid (outside the image, or thinner than a pixel). The number of dropped
    relations is logged. With ``test_mode``, invalid boxes stay: public evaluators count their
    relations.

    Args:
        metainfo (dict, optional): ``classes``, ``predicates``, ``scenes`` and, for flips,
            ``flip_predicate_pairs`` (names of predicates that a horizontal flip swaps, such as
            ``[('left of', 'right of')]``) and ``vertical_flip_predicate_pairs``.
        filter_cfg (dict, optional): ``filter_empty_gt`` and ``min_size`` as for ``CocoDataset``,
            and ``filter_empty_relations``: skip images without relations. Applies to training only,
            as in MMDetection.
        args, kwargs: As for :class:`mmdet.datasets.CocoDataset`.

    Raises:
        ValueError: The file does not have this format; the message names file and entry.

    Example:
        >>> train_dataloader = dict(dataset=dict(
        ...     type='SceneGraphDataset',
        ...     data_root='data/mine/',
        ...     ann_file='train.json',
        ...     data_prefix=dict(img='images/'),
        ...     metainfo=dict(flip_predicate_pairs=[('left of', 'right of')]),
        ...     filter_cfg=dict(filter_empty_gt=True, filter_empty_relations=True),
        ...     pipeline=train_pipeline))
    """

    METAINFO: dict = {}
    COCOAPI: Any = CocoDataset.COCOAPI

    def __init__(self, *args: Any, filter_cfg: dict | None = None, **kwargs: Any) -> None:
        unknown = sorted(set(filter_cfg or {}) - set(_FILTER_KEYS))
        if unknown:
            raise ValueError(
                f'unknown key {unknown[0]!r} in filter_cfg; the valid ones are {_FILTER_KEYS}'
            )
        super().__init__(*args, filter_cfg=filter_cfg, **kwargs)

    def load_data_list(self) -> list[dict]:
        """Read and check the annotation file.

        Returns:
            One dict an image as in ``CocoDataset``, with ``ann_id`` in each of ``instances``,
            ``relations`` ((R, 3) int64: subject ann_id, object ann_id, predicate label) and
            ``scene_label`` (int or None).
        """
        with get_local_path(self.ann_file, backend_args=self.backend_args) as path:
            content = read_json(path, self.ann_file)
        index = RelationIndex(content, self.ann_file, self._metainfo)
        self._metainfo.update(
            classes=index.classes, predicates=index.predicates, scenes=index.scenes
        )
        if index.doubt:
            print_log(f'{self.ann_file}: {index.doubt}', 'current', logging.WARNING)
        convention = (content.get('info') or {}).get('convention')
        if convention is not None:
            self._metainfo.setdefault('convention', convention)
        self._predicate_flips = PredicateFlips.from_metainfo(self._metainfo)
        self._index, self._dropped = index, 0
        # CocoDataset would read the file a second time, which is slow for large files.
        api = type(self).COCOAPI
        self.COCOAPI = lambda _: _coco(api, content)
        try:
            data_list = super().load_data_list()
        finally:
            del self.COCOAPI, self._index
        if self._dropped:
            total = self._dropped + sum(len(info['relations']) for info in data_list)
            print_log(
                f'{self.ann_file}: {self._dropped} of {total} relations dropped because their '
                'subject or object is invalid or of a class that is not selected',
                'current',
            )
        return data_list

    def parse_data_info(self, raw_data_info: dict) -> dict:
        """Parse one image and drop the relations of boxes that MMDetection considers invalid."""
        image = raw_data_info['raw_img_info']
        data_info = super().parse_data_info({'raw_img_info': image, 'raw_ann_info': []})
        instances = []
        for annotation in raw_data_info['raw_ann_info']:
            # One at a time, because the parent does not report which annotations it drops.
            parsed = super().parse_data_info({'raw_img_info': image, 'raw_ann_info': [annotation]})
            kept = parsed['instances'] or self._invalid_box(annotation)
            own = {key: annotation[key] for key in ('segment_id',) if key in annotation}
            instances += [{**i, 'ann_id': annotation['id'], **own} for i in kept]
        relations = self._index.relations(image['img_id'])
        whole = np.isin(relations[:, :2], [i['ann_id'] for i in instances]).all(axis=1)
        self._dropped += int((~whole).sum())
        data_info['instances'] = instances
        if image.get('pan_seg_file_name'):
            folder = self.data_prefix.get('seg', self.data_prefix.get('img', ''))
            data_info['seg_map_path'] = osp.join(folder, image['pan_seg_file_name'])
        data_info['relations'] = relations[whole]
        data_info['scene_label'] = self._index.scene_of_image[image['img_id']]
        return data_info

    def _invalid_box(self, annotation: dict) -> list[dict]:
        """The instance of a box that MMDetection leaves out, in a test set."""
        label = self.cat2label.get(annotation['category_id'])
        if not self.test_mode or label is None or annotation.get('ignore', False):
            return []
        x, y, width, height = annotation['bbox']
        box = [x, y, x + width, y + height]
        crowd = int(bool(annotation.get('iscrowd', False)))
        instance = dict(ignore_flag=crowd, bbox=box, bbox_label=label)
        if annotation.get('segmentation'):
            instance['mask'] = annotation['segmentation']
        return [instance]

    def filter_data(self) -> list[dict]:
        data_list = super().filter_data()
        if self.test_mode or not (self.filter_cfg or {}).get('filter_empty_relations', False):
            return data_list
        return [info for info in data_list if len(info['relations'])]

    def get_data_info(self, idx: int) -> dict:
        data_info = super().get_data_info(idx)
        data_info['predicate_flips'] = self._predicate_flips
        return data_info


def _coco(api: type, content: dict) -> Any:
    """COCO API on content that is already in memory."""
    coco = api()
    coco.dataset = content
    coco.createIndex()
    coco.img_ann_map, coco.cat_img_map = coco.imgToAnns, coco.catToImgs
    return coco
