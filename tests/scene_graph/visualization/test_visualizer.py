"""Scene-graph pictures, checked on the graph and on the pixels."""

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.colors import to_rgb
from mmdet.engine.hooks import DetVisualizationHook
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData, LabelData

from gclip_mm.scene_graph.visualization import SceneGraphVisualizer, build_graph, drawing
from gclip_mm.scene_graph.visualization.layout import circle_layout, edge_curve, place_labels

META = dict(
    classes=('cat', 'dog', 'mat'), predicates=('on', 'near', 'eats'), scenes=('home', 'street')
)


def sample(scale=1.0):
    """Annotated: cat on mat, dog near mat. Predicted: cat, mat, and a dog at a wrong place."""
    annotated = torch.tensor([[0.0, 0, 10, 10], [20.0, 20, 40, 40], [0.0, 30, 10, 40]])
    found = torch.tensor([[0.0, 0, 10, 9], [20.0, 20, 40, 40], [60.0, 0, 80, 20], [0.0, 0, 5, 5]])
    result = DetDataSample(
        metainfo=dict(
            ori_shape=(50, 100),
            img_shape=(int(50 * scale), int(100 * scale)),
            scale_factor=(scale, scale),
            img_path='somewhere/7.jpg',
        )
    )
    result.gt_instances = InstanceData(bboxes=annotated * scale, labels=torch.tensor([0, 2, 1]))
    result.gt_relations = InstanceData(
        pairs=torch.tensor([[0, 1], [2, 1], [0, 1]]), labels=torch.tensor([0, 1, 0])
    )
    result.gt_scene = LabelData(label=torch.tensor([1]))
    result.pred_instances = InstanceData(
        bboxes=found, labels=torch.tensor([0, 2, 1, 0]), scores=torch.tensor([0.9, 0.8, 0.7, 0.1])
    )
    pairs = torch.tensor([[0, 1], [1, 0], [2, 1], [0, 2], [3, 1]])
    scores = torch.tensor(
        [[0.8, 0.1, 0], [0.1, 0.15, 0], [0.1, 0.6, 0.2], [0.2, 0.2, 0.5], [0.9, 0, 0]]
    )
    result.pred_relations = InstanceData(pairs=pairs, scores=scores)
    result.pred_scene = LabelData(score=torch.tensor([0.7, 0.3]), label=torch.tensor([0]))
    return result


def edges_of(graph):
    return {
        (graph.nodes[e.subject].name, e.predicate, graph.nodes[e.object].name, e.kind)
        for e in graph.edges
    }


@pytest.mark.parametrize('scale', [1.0, 2.0])
def test_predicted_edges_are_compared_with_annotated_ones(scale):
    graph = build_graph(sample(scale), (50, 100), META)
    assert edges_of(graph) == {
        ('cat', 'on', 'mat', 'true'),
        ('dog', 'near', 'mat', 'extra'),  # the right triplet for a dog at a wrong place
        ('cat', 'eats', 'dog', 'extra'),
        ('dog', 'near', 'mat', 'missed'),
    }
    kinds = [node.kind for node in graph.nodes]
    assert kinds == ['plain', 'plain', 'plain', 'missed']  # the cat with a low score is not shown
    np.testing.assert_allclose(graph.nodes[3].box, [0, 30, 10, 40])
    missed = next(e for e in graph.edges if e.kind == 'missed')
    assert (missed.subject, missed.object) == (3, 1)  # connected to the predicted mat
    assert graph.scene == ('home', pytest.approx(0.7)) and graph.true_scene == 'street'


def test_max_edges_keeps_best_edges():
    graph = build_graph(sample(), (50, 100), META, draw_gt=False, max_edges=1)
    assert edges_of(graph) == {('cat', 'on', 'mat', 'plain')}
    assert graph.edges[0].score == pytest.approx(0.8)
    graph = build_graph(sample(), (50, 100), META, draw_gt=False, score_thr=0.0)
    assert ('cat', 'on', 'mat', 'plain') in edges_of(graph) and len(graph.nodes) == 4


def test_annotations_alone_give_plain_edges():
    # in pixels of the network's input
    graph = build_graph(sample(2.0), (100, 200), META, draw_pred=False)
    assert edges_of(graph) == {('cat', 'on', 'mat', 'plain'), ('dog', 'near', 'mat', 'plain')}
    np.testing.assert_allclose(graph.nodes[1].box, [40, 40, 80, 80])
    assert graph.scene is None


def test_missing_names_are_replaced_by_labels():
    graph = build_graph(sample(), (50, 100), {})
    assert {node.name for node in graph.nodes} == {'class 0', 'class 1', 'class 2'}
    assert graph.scene[0] == 'scene 0'


def visualizer(**options):
    name = f'test_{np.random.default_rng().integers(1 << 60)}'
    result = SceneGraphVisualizer.get_instance(name, **options)
    result.dataset_meta = META
    return result


def test_picture_is_written(tmp_path):
    image = np.full((50, 100, 3), 255, np.uint8)
    vis = visualizer()
    vis.add_datasample('x', image, sample(), out_file=str(tmp_path / 'a' / 'x.png'))
    drawn = cv2.imread(str(tmp_path / 'a' / 'x.png'))
    assert drawn.shape[1] == 1400
    np.testing.assert_array_equal(vis.get_image(), drawn[..., ::-1])
    for rgb in ((0x1B, 0x8A, 0x3A), (0xE0, 0x7B, 0x00), (0x77, 0x77, 0x77)):  # all three kinds
        assert (np.abs(drawn[..., ::-1].astype(int) - rgb).max(axis=2) < 12).sum() > 20


def test_sample_without_objects_is_drawn(tmp_path):
    empty = sample()
    empty.pred_instances = empty.pred_instances[:0]
    empty.pred_relations = empty.pred_relations[:0]
    empty.gt_instances, empty.gt_relations = empty.gt_instances[:0], empty.gt_relations[:0]
    out = tmp_path / 'x.png'
    visualizer().add_datasample('x', np.zeros((50, 100, 3), np.uint8), empty, out_file=str(out))
    assert out.is_file()
    one = sample()
    one.pred_instances = one.pred_instances[:1]
    one.pred_relations = one.pred_relations[:0]
    visualizer().add_datasample('x', np.zeros((50, 100, 3), np.uint8), one, out_file=str(out))


def test_det_visualization_hook_draws_graph(tmp_path):
    """tools/test.py --show-dir and validation call the hook."""
    cv2.imwrite(str(tmp_path / '7.jpg'), np.full((50, 100, 3), 200, np.uint8))
    data = sample()
    data.set_metainfo(dict(img_path=str(tmp_path / '7.jpg')))
    vis = visualizer(
        vis_backends=[dict(type='LocalVisBackend')], save_dir=str(tmp_path / 'backend')
    )
    hook = DetVisualizationHook(draw=True, interval=1)
    assert hook._visualizer is vis
    runner = type('Runner', (), dict(iter=40, work_dir=str(tmp_path), timestamp='now'))()
    hook.after_val_iter(runner, 0, {}, [data])
    assert list((tmp_path / 'backend').rglob('*40.png'))
    hook.test_out_dir = 'shown'
    hook.after_test_iter(runner, 0, {}, [data])
    assert (tmp_path / 'now' / 'shown' / '7.jpg').is_file()


@pytest.mark.parametrize(
    'options, message',
    [
        (dict(max_edges=-1), 'max_edges must be at least 0'),
        (dict(edge_score_thr=2), r'edge_score_thr must be in \[0, 1\]'),
        (dict(dpi=0), 'dpi must be at least 1'),
    ],
)
def test_bad_option_raises_with_its_name(options, message):
    with pytest.raises(ValueError, match=message):
        visualizer(**options)


@settings(max_examples=50, deadline=None)
@given(count=st.integers(0, 12), seed=st.integers(0, 999))
def test_nodes_are_evenly_spaced_by_angle(count, seed):
    centers = np.random.default_rng(seed).random((count, 2)) * 100
    places = circle_layout(centers)
    assert places.shape == (count, 2)
    if count < 2:
        return
    np.testing.assert_allclose(np.linalg.norm(places, axis=1), 1)
    angles = np.sort(np.arctan2(places[:, 1], places[:, 0]))
    gaps = np.diff(np.concatenate([angles, angles[:1] + 2 * np.pi]))
    np.testing.assert_allclose(gaps, 2 * np.pi / count)


def test_labels_of_ten_objects_do_not_overlap():
    """Labels of a ring of ten edges overlap neither each other nor a node name."""
    places = circle_layout(np.random.default_rng(0).random((10, 2))) * 3
    node_boxes = np.concatenate([places - (0.5, 0.12), places + (0.5, 0.12)], axis=1)
    pairs = [(i, (i + step) % 10) for i in range(10) for step in (1, 3)]
    curves = [(places[a], edge_curve(places[a], places[b], 'true'), places[b]) for a, b in pairs]
    size = np.array([0.6, 0.16])
    labels = place_labels(curves, np.tile(size, (len(curves), 1)), node_boxes)
    boxes = np.concatenate([labels - size / 2, labels + size / 2], axis=1)
    everything = np.concatenate([node_boxes, boxes])
    for i in range(10, len(everything)):
        for j in range(i):
            a, b = everything[i], everything[j]
            overlap = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
            share = np.clip(overlap, 0, None).prod() / size.prod()
            assert share < 0.35, f'{i} covers {share:.0%} of {j}'


def contrast(a, b):
    """WCAG 2.1, by its text: relative luminances of two colors, the lighter one first."""

    def luminance(color):
        linear = [
            v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in to_rgb(color)
        ]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize('count', [10, 20])
def test_text_on_every_node_color_is_readable(count):
    """4.5 is the minimum of WCAG 2.1 for text."""
    chosen = set()
    for color in drawing._node_colors(count):
        text = drawing._text_color(color)
        other = dict(white='black', black='white')[text]
        assert contrast(text, color) >= max(4.5, contrast(other, color))
        chosen.add(text)
    assert chosen == {'white', 'black'}


def test_legend_does_not_say_that_a_hidden_edge_was_not_predicted():
    """An annotated edge is drawn as missed too if its prediction is below the threshold."""
    kinds = {e.kind for e in build_graph(sample(), (50, 100), META, edge_score_thr=0.9).edges}
    assert kinds == {'missed'}
    assert drawing.EDGE_STYLES['missed']['label'] == 'annotated, not among those shown'
