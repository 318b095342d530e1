"""Draws a picture and its scene graph side by side."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyArrowPatch, Rectangle
from matplotlib.path import Path

from .graph import Edge, Graph, Node
from .layout import circle_layout, edge_curve, place_labels

# Most color-blind people can distinguish blue, green, orange and grey.
EDGE_STYLES: dict[str, dict[str, Any]] = {
    'plain': dict(color='#3366aa', linestyle='-', label='predicted'),
    'true': dict(color='#1b8a3a', linestyle='-', label='predicted, annotated'),
    'extra': dict(color='#e07b00', linestyle='-', label='predicted, not annotated'),
    'missed': dict(color='#777777', linestyle='--', label='annotated, not among those shown'),
}
PANEL_INCHES = 7.0
MASK_OPACITY = 0.5
NODE_FONT, EDGE_FONT, TITLE_FONT = 10, 8, 12
# Inches per point of font size; a letter is about 0.55 of the font size wide.
_POINT = 1 / 72


def draw(image: np.ndarray, graph: Graph, dpi: int = 100) -> np.ndarray:
    """Draw numbered boxes on the left, the graph on the right and the scene in the title.

    Args:
        image: (H, W, 3) uint8 RGB.
        graph: Graph to draw.
        dpi: Pixels per inch; the result is 14 inches wide.

    Returns:
        (height, width, 3) uint8 RGB.
    """
    height, width = image.shape[:2]
    # The graph needs a minimum height, also beside a very wide picture.
    panel = float(np.clip(PANEL_INCHES * height / width, 5.0, 9.0))
    figure = Figure(figsize=(2 * PANEL_INCHES, panel + 0.9), dpi=dpi, facecolor='white')
    canvas = FigureCanvasAgg(figure)
    bottom, top = 0.45 / (panel + 0.9), panel / (panel + 0.9)
    left = figure.add_axes((0.01, bottom, 0.48, top))
    right = figure.add_axes((0.5, bottom, 0.49, top))
    colors = _node_colors(len(graph.nodes))
    _draw_image(left, image, graph.nodes, colors)
    _draw_graph(right, graph, colors, PANEL_INCHES * 0.98, panel)
    title, color = _title(graph)
    if title:
        figure.suptitle(title, fontsize=TITLE_FONT, color=color, y=0.985, va='top')
    _legend(figure, graph.edges)
    canvas.draw()
    return np.ascontiguousarray(np.asarray(canvas.buffer_rgba())[..., :3])


def _node_colors(count: int) -> list:
    table = colormaps['tab10' if count <= 10 else 'tab20']
    return [table(i % table.N) for i in range(count)]


def _text_color(fill: tuple) -> str:
    """Black or white: the one with the higher contrast on this color (WCAG 2.1)."""
    channels = np.asarray(to_rgb(fill))
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    luminance = float(linear @ [0.2126, 0.7152, 0.0722])
    # Contrast (a + 0.05) / (b + 0.05) with white is the larger one up to this luminance.
    return 'white' if luminance < 1.05**0.5 * 0.05**0.5 - 0.05 else 'black'


def _title(graph: Graph) -> tuple[str, str]:
    if graph.scene is None:
        return (
            ('', 'black') if graph.true_scene is None else (f'scene: {graph.true_scene}', 'black')
        )
    name, score = graph.scene
    title = f'scene: {name} ({score:.2f})'
    if graph.true_scene is None:
        return title, 'black'
    if graph.true_scene == name:
        return title, EDGE_STYLES['true']['color']
    return f'{title}, annotated: {graph.true_scene}', EDGE_STYLES['extra']['color']


def _draw_image(axes: Axes, image: np.ndarray, nodes: list[Node], colors: list) -> None:
    axes.imshow(_over_masks(image, nodes, colors))
    axes.set_axis_off()
    height, width = image.shape[:2]
    for i, node in enumerate(nodes):
        x1, y1, x2, y2 = node.box
        axes.add_patch(
            Rectangle(
                (x1, y1),
                x2 - x1,
                y2 - y1,
                fill=False,
                linewidth=2,
                edgecolor=colors[i],
                linestyle='--' if node.kind == 'missed' else '-',
            )
        )
        axes.text(
            min(max(x1, 0), width * 0.97),
            min(max(y1, height * 0.03), height),
            str(i + 1),
            color=_text_color(colors[i]),
            fontsize=NODE_FONT,
            fontweight='bold',
            va='center',
            ha='left',
            bbox=dict(boxstyle='round,pad=0.2', facecolor=colors[i], edgecolor='none'),
        )
    axes.set_xlim(-0.5, width - 0.5)
    axes.set_ylim(height - 0.5, -0.5)


def _over_masks(image: np.ndarray, nodes: list[Node], colors: list) -> np.ndarray:
    """The image (H, W, 3) uint8 tinted by the masks, large ones first so that small ones show."""
    masks = {i: node.mask for i, node in enumerate(nodes) if node.mask is not None}
    tinted = image.astype(np.float64)
    for i, mask in sorted(masks.items(), key=lambda item: -np.count_nonzero(item[1])):
        color = 255 * np.array(colors[i][:3])
        tinted[mask] = (1 - MASK_OPACITY) * image[mask] + MASK_OPACITY * color
    return tinted.round().astype(np.uint8) if masks else image


def _node_text(i: int, node: Node) -> str:
    return f'{i + 1} {node.name}' + ('' if node.score is None else f' {node.score:.2f}')


def _edge_text(edge: Edge) -> str:
    return edge.predicate + ('' if edge.score is None else f' {edge.score:.2f}')


def _text_size(text: str, font: float) -> np.ndarray:
    """Width and height in inches, including the padding of the text box."""
    return np.array([0.58 * font * len(text) + 6, font + 6]) * _POINT


def _draw_graph(axes: Axes, graph: Graph, colors: list, width: float, height: float) -> None:
    """Draw the graph on axes in units of inches, so that text sizes are known."""
    axes.set_axis_off()
    axes.set_xlim(-width / 2, width / 2)
    axes.set_ylim(-height / 2, height / 2)
    if not graph.nodes:
        axes.text(0, 0, 'no objects', ha='center', va='center', fontsize=TITLE_FONT, color='grey')
        return
    centers = np.array(
        [[(n.box[0] + n.box[2]) / 2, (n.box[1] + n.box[3]) / 2] for n in graph.nodes]
    )
    texts = [_node_text(i, node) for i, node in enumerate(graph.nodes)]
    sizes = np.array([_text_size(text, NODE_FONT) for text in texts])
    radius = np.array([width / 2 - sizes[:, 0].max() / 2 - 0.1, height / 2 - 0.35])
    places = circle_layout(centers) * radius if len(graph.nodes) > 1 else np.zeros((1, 2))
    edges = _drawn_edges(graph.edges)
    curves = []
    for edge in edges:
        start, end = places[edge.subject], places[edge.object]
        curves.append((start, edge_curve(start, end, edge.kind), end))
    for edge, (start, control, end) in zip(edges, curves, strict=True):
        style = EDGE_STYLES[edge.kind]
        axes.add_patch(
            FancyArrowPatch(
                path=_shortened(start, control, end, sizes[edge.subject], sizes[edge.object]),
                arrowstyle='-|>',
                mutation_scale=13,
                linewidth=1.6,
                color=style['color'],
                linestyle=style['linestyle'],
                zorder=1,
            )
        )
    boxes = np.concatenate([places - sizes / 2, places + sizes / 2], axis=1)
    labels = [_edge_text(edge) for edge in edges]
    label_sizes = np.array([_text_size(text, EDGE_FONT) for text in labels]).reshape(-1, 2)
    for edge, text, place in zip(
        edges, labels, place_labels(curves, label_sizes, boxes), strict=True
    ):
        color = EDGE_STYLES[edge.kind]['color']
        axes.text(
            place[0],
            place[1],
            text,
            fontsize=EDGE_FONT,
            color=color,
            ha='center',
            va='center',
            zorder=2,
            bbox=dict(boxstyle='round,pad=0.15', facecolor='white', edgecolor=color, linewidth=0.6),
        )
    for i, (place, text) in enumerate(zip(places, texts, strict=True)):
        missed = graph.nodes[i].kind == 'missed'
        axes.text(
            place[0],
            place[1],
            text,
            fontsize=NODE_FONT,
            fontweight='bold',
            color='black' if missed else _text_color(colors[i]),
            ha='center',
            va='center',
            zorder=3,
            bbox=dict(
                boxstyle='round,pad=0.3',
                facecolor='white' if missed else colors[i],
                edgecolor=colors[i],
                linestyle='--' if missed else '-',
            ),
        )


def _drawn_edges(edges: list[Edge]) -> list[Edge]:
    """Merge edges with equal direction and kind into one arrow that lists their predicates.

    Edges of different kinds are not merged, because only the color distinguishes them.
    """
    merged: dict[tuple[int, int, str], Edge] = {}
    for edge in edges:
        key = (edge.subject, edge.object, edge.kind)
        if key in merged:
            first = merged[key]
            merged[key] = Edge(
                edge.subject,
                edge.object,
                f'{_edge_text(first)}, {_edge_text(edge)}',
                None,
                edge.kind,
            )
        else:
            merged[key] = edge
    return list(merged.values())


def _shortened(
    start: np.ndarray,
    control: np.ndarray,
    end: np.ndarray,
    start_size: np.ndarray,
    end_size: np.ndarray,
) -> Path:
    """Part of the curve outside the text boxes of its two nodes."""
    t = np.linspace(0, 1, 65)[:, None]
    points = (1 - t) ** 2 * start + 2 * t * (1 - t) * control + t**2 * end
    outside = (np.abs(points - start) > start_size / 2 + 0.04).any(axis=1) & (
        np.abs(points - end) > end_size / 2 + 0.04
    ).any(axis=1)
    points = points[outside] if outside.sum() >= 2 else points
    return Path(points)


def _legend(figure: Figure, edges: list[Edge]) -> None:
    kinds = [kind for kind in EDGE_STYLES if any(edge.kind == kind for edge in edges)]
    if not kinds or kinds == ['plain']:
        return
    lines = [
        Line2D([], [], color=style['color'], linestyle=style['linestyle'], label=style['label'])
        for style in (EDGE_STYLES[kind] for kind in kinds)
    ]
    figure.legend(handles=lines, loc='lower center', ncols=len(lines), fontsize=9, frameon=False)
