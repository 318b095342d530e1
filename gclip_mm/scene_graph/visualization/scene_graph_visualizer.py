"""Scene graphs in the place of MMDetection's pictures of boxes."""

from __future__ import annotations

import mmcv
import numpy as np
from mmdet.registry import VISUALIZERS
from mmdet.structures import DetDataSample
from mmdet.visualization import DetLocalVisualizer
from mmengine.dist import master_only

from .drawing import draw
from .graph import build_graph


@VISUALIZERS.register_module()
class SceneGraphVisualizer(DetLocalVisualizer):
    """The image with numbered boxes on the left, its graph with predicates and scores on the right.

    A node has the number and the color of its box. The scene is in the title. Where annotations
    are there to compare with, edges are predicted and annotated (green), predicted and not
    annotated (orange), or annotated and not among those shown (grey, dashed); objects that are
    annotated but not found are dashed.

    Drawn by MMDetection's ``DetVisualizationHook``, which ``tools/test.py --show-dir`` switches on.

    Args:
        max_edges: Most predicted edges, those of the highest product of subject, object and
            predicate score.
        edge_score_thr: Least score of a shown predicate.
        dpi: Resolution; the picture is 14 inches wide.
        **kwargs: As for :class:`mmdet.visualization.DetLocalVisualizer`.

    Raises:
        ValueError: ``max_edges`` below 0, ``edge_score_thr`` outside [0, 1], ``dpi`` below 1.

    Example:
        >>> visualizer = dict(
        ...     type='SceneGraphVisualizer', vis_backends=[dict(type='LocalVisBackend')])
        >>> default_hooks = dict(visualization=dict(type='DetVisualizationHook', draw=True))
    """

    def __init__(
        self,
        name: str = 'visualizer',
        *args,
        max_edges: int = 15,
        edge_score_thr: float = 0.2,
        dpi: int = 100,
        **kwargs,
    ) -> None:
        if max_edges < 0:
            raise ValueError(f'max_edges must be at least 0, got {max_edges}')
        if not 0 <= edge_score_thr <= 1:
            raise ValueError(f'edge_score_thr must be in [0, 1], got {edge_score_thr}')
        if dpi < 1:
            raise ValueError(f'dpi must be at least 1, got {dpi}')
        super().__init__(name, *args, **kwargs)
        self.max_edges = max_edges
        self.edge_score_thr = edge_score_thr
        self.dpi = dpi

    @master_only
    def add_datasample(
        self,
        name: str,
        image: np.ndarray,
        data_sample: DetDataSample | None = None,
        draw_gt: bool = True,
        draw_pred: bool = True,
        show: bool = False,
        wait_time: float = 0,
        out_file: str | None = None,
        pred_score_thr: float = 0.3,
        step: int = 0,
    ) -> None:
        """Draw a data sample.

        Args:
            name: Name of the picture.
            image: (H, W, 3) uint8 RGB, the original image or the network's input.
            data_sample: With predictions (``pred_instances``, ``pred_relations``, ``pred_scene``),
                annotations (``gt_instances``, ``gt_relations``, ``gt_scene``), or both.
            draw_gt: Draw, or compare with, annotations.
            draw_pred: Draw predictions.
            show: Show it in a window.
            wait_time: Seconds that the window stays, 0 for ever.
            out_file: Save it here; else it goes to the backends.
            pred_score_thr: Least score of a shown object.
            step: Step that the backends file it under.
        """
        image = image.clip(0, 255).astype(np.uint8)
        drawn = image
        if data_sample is not None:
            graph = build_graph(
                data_sample.cpu(),
                image.shape[:2],
                self.dataset_meta or {},
                draw_gt=draw_gt,
                draw_pred=draw_pred,
                score_thr=pred_score_thr,
                edge_score_thr=self.edge_score_thr,
                max_edges=self.max_edges,
            )
            drawn = draw(image, graph, self.dpi)
        self.set_image(drawn)
        if show:
            self.show(drawn, win_name=name, wait_time=wait_time)
        if out_file is not None:
            mmcv.imwrite(drawn[..., ::-1], out_file)
        else:
            self.add_image(name, drawn, step)
