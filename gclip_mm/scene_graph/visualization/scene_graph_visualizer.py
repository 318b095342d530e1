"""Visualizer that draws scene graphs instead of boxes only."""

from __future__ import annotations

from typing import Any

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
    """Draws numbered boxes on the left and the graph with predicates and scores on the right.

    A node has the number and the color of its box. The title shows the scene. If the sample has
    annotations, edges are green (predicted and annotated), orange (predicted, not annotated) or
    grey and dashed (annotated, not among those shown). Annotated objects that were not found are
    dashed.

    MMDetection's ``DetVisualizationHook`` calls the visualizer; ``tools/test.py --show-dir``
    enables the hook.

    Args:
        max_edges: Maximum number of predicted edges: those with the highest product of subject,
            object and predicate score.
        edge_score_thr: Minimum score of a shown predicate.
        dpi: Pixels per inch; the picture is 14 inches wide.
        **kwargs: As for :class:`mmdet.visualization.DetLocalVisualizer`.

    Raises:
        ValueError: ``max_edges`` is below 0, ``edge_score_thr`` outside [0, 1], or ``dpi`` below 1.

    Example:
        >>> visualizer = dict(
        ...     type='SceneGraphVisualizer', vis_backends=[dict(type='LocalVisBackend')])
        >>> default_hooks = dict(visualization=dict(type='DetVisualizationHook', draw=True))
    """

    def __init__(
        self,
        name: str = 'visualizer',
        *args: Any,
        max_edges: int = 15,
        edge_score_thr: float = 0.2,
        dpi: int = 100,
        **kwargs: Any,
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
            draw_gt: Draw annotations, or compare predictions with them.
            draw_pred: Draw predictions.
            show: Show the picture in a window.
            wait_time: Seconds to show the window, 0 for no limit.
            out_file: Save the picture here. None: send it to the backends.
            pred_score_thr: Minimum score of a shown object.
            step: Step number for the backends.
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
