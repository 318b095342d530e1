"""BCCD blood cell photos as an MMDetection data set."""

from __future__ import annotations

import os.path as osp
from typing import Any

from mmdet.datasets import XMLDataset
from mmdet.registry import DATASETS
from mmengine.fileio import exists


@DATASETS.register_module()
class BCCDDataset(XMLDataset):
    """364 microscope photos with red cells, white cells and platelets, in VOC layout.

    Subclass of mmdet's VOC-style data set that sets the three classes and raises one clear error
    if the photos are missing. Source: https://github.com/Shenggan/BCCD_Dataset (MIT licence).

    Args:
        data_root (str): Folder with ``JPEGImages``, ``Annotations`` and ``ImageSets``. Defaults
            to 'data/BCCD/'.
        ann_file (str): File with one image name a line. Defaults to 'ImageSets/Main/train.txt'.
        data_prefix (dict, optional): Defaults to ``dict(sub_data_root='')``, which is
            ``data_root`` itself.
        **kwargs: As for :class:`mmdet.datasets.XMLDataset`.

    Raises:
        FileNotFoundError: The list of images, ``JPEGImages`` or ``Annotations`` does not exist.
    """

    METAINFO = dict(
        classes=('RBC', 'WBC', 'Platelets'),
        palette=[(220, 20, 60), (80, 60, 200), (255, 160, 0)],
    )

    def __init__(
        self,
        data_root: str = 'data/BCCD/',
        ann_file: str = 'ImageSets/Main/train.txt',
        data_prefix: dict[str, str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            data_root=data_root,
            ann_file=ann_file,
            data_prefix=dict(sub_data_root='') if data_prefix is None else data_prefix,
            **kwargs,
        )

    def load_data_list(self) -> list[dict]:
        root = self.sub_data_root
        needed = [self.ann_file, *(osp.join(root, d) for d in (self.img_subdir, self.ann_subdir))]
        missing = [path for path in needed if not exists(path, backend_args=self.backend_args)]
        if missing:
            raise FileNotFoundError(
                f'BCCD is not in place: {missing[0]} does not exist. Download '
                'https://github.com/Shenggan/BCCD_Dataset and put (or link) its BCCD folder at '
                f'{self.data_root}, or set data_root to that folder; it must contain JPEGImages/, '
                'Annotations/ and ImageSets/Main/.'
            )
        return super().load_data_list()
