"""ShapeScenes with relations and scene classes."""

from __future__ import annotations

from mmdet.registry import DATASETS

from gclip_mm.datasets.shape_scenes import generate
from gclip_mm.datasets.shape_scenes_dataset import ShapeScenesDataset

from .scene_graph_dataset import SceneGraphDataset


@DATASETS.register_module()
class ShapeScenesGraphDataset(SceneGraphDataset, ShapeScenesDataset):
    """ShapeScenes as a scene-graph data set; the pictures are generated on first use.

    Args:
        args, kwargs: As for :class:`gclip_mm.datasets.ShapeScenesDataset`, and ``filter_cfg``
            as for :class:`SceneGraphDataset`.

    Example:
        >>> train_dataloader = dict(dataset=dict(
        ...     type='ShapeScenesGraphDataset',
        ...     data_root='data/shape_scenes/',
        ...     ann_file='annotations/train.json',
        ...     filter_cfg=dict(filter_empty_relations=True),
        ...     pipeline=train_pipeline))
    """

    METAINFO = ShapeScenesDataset.METAINFO

    def load_data_list(self) -> list[dict]:
        generate(self.data_root, self.params)  # before SceneGraphDataset reads the file
        return super().load_data_list()
