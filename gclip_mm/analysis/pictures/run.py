"""The pictures of a run: its curves, and its detections beside the ground truth."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..run_files import Scalars
from .backend import Axes, plt

# Least width of a drawn image in pixels; smaller images are enlarged to keep labels readable.
DRAWN_WIDTH = 320

LOSS_COLOR, PRE_COLOR, POST_COLOR, THRESHOLD_COLOR = '#1b1b1b', '#d1495b', '#00798c', '#8d99ae'


def _finite(steps: Sequence[int], values: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    keep = np.isfinite(values)
    return np.asarray(steps)[keep], np.asarray(values, float)[keep]


def draw_loss(ax: Axes, scalars: Scalars, color: str = LOSS_COLOR, label: str = 'loss') -> None:
    """Draw the training loss, and mark the step from which the run is lost."""
    steps, values = _finite(*scalars.series('loss'))
    diverged = scalars.lost_from()
    if diverged is not None:
        label = f'{label}: lost from step {diverged}'
        ax.axvline(diverged, color=color, ls=':', lw=1.4)
        # A run may diverge so early that its line has one point only.
        ax.plot(steps, values, 'x', color=color, ms=6)
    ax.plot(steps, values, color=color, lw=1.4, label=label)
    ax.set_xlabel('step')
    ax.set_ylabel('training loss')
    ax.grid(alpha=0.25)


def draw_norms(ax: Axes, scalars: Scalars) -> bool:
    """Draw the gradient norm before and after clipping on a log axis.

    Returns:
        Whether any norm was logged.
    """
    drawn = False
    members = scalars.members()
    runs = {f' ({name})': scalars.member(name) for name in members} or {'': scalars}
    for i, (name, run) in enumerate(runs.items()):
        for key, color, width, label in (
            ('clip_threshold', THRESHOLD_COLOR, 1.0, 'threshold'),
            ('grad_norm', PRE_COLOR, 1.4, 'before clipping'),
            ('grad_norm_post', POST_COLOR, 1.4, 'after clipping'),
        ):
            steps, values = _finite(*run.series(key))
            positive = values > 0
            if positive.any() and not (key == 'clip_threshold' and not run.bounds_the_norm()):
                style = '--' if key == 'clip_threshold' else '-'
                mark = 'o' if positive.sum() == 1 else '^sDv'[i % 4] * bool(members)
                ax.plot(
                    steps[positive], values[positive], style, color=color, lw=width,
                    marker=mark or None, ms=3, label=label + name,
                )  # fmt: skip
                drawn = True
    if drawn:
        ax.set_yscale('log')
        ax.legend(loc='upper right', fontsize=8)
    ax.set_xlabel('step')
    ax.set_ylabel('gradient norm')
    ax.grid(alpha=0.25, which='both')
    return drawn


def save_curves(scalars: Scalars, path: Path, title: str) -> Path:
    """Draw loss and gradient norms of one run into a PNG."""
    fig, (top, bottom) = plt.subplots(2, 1, figsize=(8, 6), sharex=True, layout='constrained')
    draw_loss(top, scalars)
    if scalars.lost_from() is not None:
        top.legend(fontsize=8)
    top.set_xlabel('')
    if not draw_norms(bottom, scalars):
        bottom.text(
            0.5,
            0.5,
            'no gradient norm was logged\n(the run did not clip)',
            ha='center',
            va='center',
            transform=bottom.transAxes,
        )
    fig.suptitle(title)
    fig.savefig(path, dpi=120)
    plt.close(fig)
    return path


def detections(
    config: Path | str, checkpoint: Path | str, num_images: int, device: str
) -> tuple[list[np.ndarray], list[Any], dict[str, Any]]:
    """Run a trained detector over evenly spaced images of its test split.

    Returns:
        tuple: RGB images (height, width, 3); data samples with ``gt_instances`` and
        ``pred_instances``, both in pixels of those images; the metainfo of the data set.
    """
    import mmcv
    import torch
    from mmdet.apis import init_detector
    from mmdet.registry import DATASETS
    from mmengine.config import Config
    from mmengine.dataset import pseudo_collate
    from mmengine.registry import init_default_scope
    from mmengine.utils import track_iter_progress

    cfg = Config.fromfile(str(config))
    init_default_scope(cfg.get('default_scope', 'mmdet'))
    dataset = DATASETS.build(cfg.test_dataloader.dataset)
    model = init_detector(cfg, str(checkpoint), palette='none', device=device)
    count = min(num_images, len(dataset))
    images, samples = [], []
    indices = np.linspace(0, len(dataset) - 1, count).round().astype(int).tolist()
    for index in track_iter_progress(indices, file=sys.stderr):
        batch = pseudo_collate([dataset[index]])
        with torch.no_grad():
            samples += [sample.cpu() for sample in model.test_step(batch)]
        images.append(mmcv.imread(samples[-1].img_path, channel_order='rgb'))
    return images, samples, dataset.metainfo


def paint(
    image: np.ndarray,
    sample: Any,
    metainfo: dict[str, Any],
    truth: bool,
    score_thr: float,
) -> np.ndarray:
    """Draw the ground truth or the detections of one RGB image (H, W, 3), enlarged if small."""
    import mmcv
    from mmdet.visualization import DetLocalVisualizer

    factor = max(1, math.ceil(DRAWN_WIDTH / image.shape[1]))
    large = mmcv.imrescale(image, factor) if factor > 1 else image
    sample = sample.clone()
    for name in ('gt_instances', 'pred_instances'):
        instances = sample.get(name).clone()
        boxes = instances.bboxes
        instances.bboxes = getattr(boxes, 'tensor', boxes) * factor
        if 'masks' in instances:
            del instances.masks  # of the original size
        sample.set_field(instances, name)
    visualizer = DetLocalVisualizer.get_instance('run_pictures')
    visualizer.dataset_meta = metainfo
    visualizer.add_datasample(
        'image', large, sample, draw_gt=truth, draw_pred=not truth, pred_score_thr=score_thr
    )
    return visualizer.get_image()


def save_detections(
    images: list[np.ndarray],
    samples: list[Any],
    metainfo: dict[str, Any],
    path: Path,
    score_thr: float,
    title: str,
) -> Path:
    """Draw a grid of image pairs, ground truth on the left and detections on the right."""
    columns = 2 if len(images) > 1 else 1
    rows = math.ceil(len(images) / columns)
    height, width = images[0].shape[:2]
    fig, axes = plt.subplots(
        rows,
        2 * columns,
        figsize=(6.4 * columns, 3.2 * rows * height / width + 0.7),
        squeeze=False,
        layout='constrained',
    )
    for ax in axes.flat:
        ax.axis('off')
    for k, (image, sample) in enumerate(zip(images, samples, strict=True)):
        row, column = divmod(k, columns)
        for side, truth in enumerate((True, False)):
            ax = axes[row, 2 * column + side]
            ax.imshow(paint(image, sample, metainfo, truth, score_thr))
            if row == 0:
                name = 'ground truth' if truth else f'detections, score > {score_thr:g}'
                ax.set_title(name, fontsize=9)
    fig.suptitle(title)
    fig.savefig(path, dpi=130)
    plt.close(fig)
    return path
