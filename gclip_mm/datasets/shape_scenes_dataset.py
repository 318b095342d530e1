"""ShapeScenes as an MMDetection data set."""

from __future__ import annotations

from typing import Any

from mmdet.datasets import CocoDataset
from mmdet.registry import DATASETS

from .shape_scenes import METAINFO, ShapeScenesParams, generate


@DATASETS.register_module()
class ShapeScenesDataset(CocoDataset):
    """ShapeScenes for detection: boxes and masks; the pictures are generated on first use.

    The first data set to load a ``data_root`` draws all splits there and shows a progress bar.
    Later data sets, and other processes of the same run, reuse the files. The JSON files also have
    relations and scene classes (see :mod:`gclip_mm.datasets.shape_scenes`), which this class
    ignores.

    Args:
        data_root (str): Folder of the data set. Defaults to 'data/shape_scenes/'.
        ann_file (str): Defaults to 'annotations/train.json'.
        data_prefix (dict, optional): Folder of the pictures. Defaults to the name of the
            annotation file: ``dict(img='train/')`` for 'annotations/train.json'.
        params (dict, optional): Keyword arguments of
            :class:`~gclip_mm.datasets.shape_scenes.ShapeScenesParams`: ``num_train``,
            ``num_val``, ``image_size`` (width, height), ``seed`` and ``long_tail``. The training
            and the validation data set need the same values. Defaults to None, the default
            parameters.
        **kwargs: As for :class:`mmdet.datasets.CocoDataset`.

    Raises:
        ValueError: A parameter is unknown or out of range.
        FileExistsError: ``data_root`` holds something other than the requested data set.

    Example:
        >>> train_dataloader = dict(dataset=dict(
        ...     type='ShapeScenesDataset',
        ...     data_root='data/shape_scenes/',
        ...     ann_file='annotations/train.json',
        ...     params=dict(num_train=800, num_val=200, image_size=(160, 128), seed=0),
        ...     pipeline=train_pipeline))
    """

    METAINFO = METAINFO

    def __init__(
        self,
        data_root: str = 'data/shape_scenes/',
        ann_file: str = 'annotations/train.json',
        data_prefix: dict[str, str] | None = None,
        params: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self.params = _params(params or {})
        if data_prefix is None:
            data_prefix = dict(img=ann_file.rsplit('/', 1)[-1].removesuffix('.json') + '/')
        super().__init__(data_root=data_root, ann_file=ann_file, data_prefix=data_prefix, **kwargs)

    def load_data_list(self) -> list[dict]:
        generate(self.data_root, self.params)
        return super().load_data_list()


def _params(given: dict[str, Any]) -> ShapeScenesParams:
    valid = list(ShapeScenesParams.__dataclass_fields__)
    unknown = sorted(set(given) - set(valid))
    if unknown:
        raise ValueError(f'unknown key {unknown[0]!r} in params; the valid ones are {valid}')
    return ShapeScenesParams(**given)
