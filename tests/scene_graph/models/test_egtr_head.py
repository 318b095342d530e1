"""The EGTR head against its published forward, and against the formulas in NumPy."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmdet.registry import MODELS, TASK_UTILS
from mmengine.structures import InstanceData

from gclip_mm.scene_graph.models.detectors.adapters.decoder_queries import pixel_boxes
from gclip_mm.scene_graph.models.detectors.query_relations import QueryRelations
from gclip_mm.scene_graph.models.heads.egtr_head import EGTRHead, QueryLogits, QueryStates
from gclip_mm.scene_graph.models.protocol import SceneGraphProtocol
from gclip_mm.scene_graph.models.task_modules.query_matching import (
    lowest_cost,
    match_quality,
    match_queries,
)

BATCH, QUERIES, DIM, LAYERS, PREDICATES, CLASSES = 2, 6, 8, 2, 5, 4
# Outputs of the public code (naver-ai/egtr, 7f87450) in float64, with the weights and inputs that
# ``drawn`` and ``set_weights`` draw.
PUBLISHED = json.loads(Path(__file__).with_name('egtr_published.json').read_text())
BOXES = (
    [[0.3, 0.4, 0.2, 0.3], [0.6, 0.5, 0.4, 0.2], [0.5, 0.5, 0.3, 0.6]],
    [[0.2, 0.7, 0.3, 0.3], [0.7, 0.3, 0.2, 0.5]],
)
LABELS = ([0, 2, 3], [1, 1])
RELATIONS = ([[0, 1, 0], [0, 1, 3], [2, 0, 4]], [[1, 0, 2]])
SHAPE = (50, 80)  # height, width
COSTS = [
    dict(type='FocalLossCost', weight=2.0),
    dict(type='BBoxL1Cost', weight=5.0, box_format='xywh'),
    dict(type='IoUCost', iou_mode='giou', weight=2.0),
]


def published(key, *shape):
    return torch.tensor(PUBLISHED[key], dtype=torch.float64).reshape(BATCH, *shape)


def drawn():
    """Queries, keys, the last layer, and counts (C, C, P)."""
    rng = np.random.RandomState(0)
    layers = [torch.tensor(rng.standard_normal((BATCH, QUERIES, DIM))) for _ in range(5)]
    counts = rng.randint(0, 4, (CLASSES, CLASSES, PREDICATES))
    return layers[:2], layers[2:4], layers[4], counts


def states():
    queries, keys, hidden, _ = drawn()
    logits = published('logits', QUERIES, CLASSES)
    boxes = published('pred_boxes', QUERIES, 4)
    return QueryStates(queries, keys, hidden, logits, logits.sigmoid(), boxes)


def set_weights(head):
    rng = np.random.RandomState(1)
    with torch.no_grad():
        for name, param in sorted(head.named_parameters()):
            if not name.startswith('frequency_bias'):
                param.copy_(torch.tensor(rng.standard_normal(tuple(param.shape)) * 0.5))


def make_head(bias=True, **options):
    sizes = dict(num_classes=CLASSES, num_predicates=PREDICATES)
    frequency = dict(type='LogCountBias') if bias else None
    head = EGTRHead(
        embed_dims=DIM, num_layers=LAYERS, frequency_bias=frequency, **sizes, **options
    ).double()
    set_weights(head)
    counts = drawn()[3]
    for module in head.modules():
        if hasattr(module, 'set_counts'):
            module.set_counts(counts, np.zeros((CLASSES, CLASSES), np.int64))
    return head


def truth():
    """Ground truth of both images: objects in pixels, and relations."""
    objects, relations = [], []
    for boxes, labels, triplets in zip(BOXES, LABELS, RELATIONS, strict=True):
        boxes = pixel_boxes(torch.tensor(boxes, dtype=torch.float64), SHAPE)
        objects.append(InstanceData(bboxes=boxes, labels=torch.tensor(labels)))
        triplets = torch.tensor(triplets)
        relations.append(InstanceData(pairs=triplets[:, :2], labels=triplets[:, 2]))
    return objects, relations


def matched():
    costs = [TASK_UTILS.build(dict(cost)) for cost in COSTS]
    given = states()
    return [
        match_queries(
            costs,
            given.logits[i],
            pixel_boxes(given.boxes[i], SHAPE),
            objects,
            dict(img_shape=SHAPE),
        )
        for i, objects in enumerate(truth()[0])
    ]


def loss_of(head):
    """Both losses without their weights."""
    with torch.no_grad():
        losses = head.loss(head(states()), matched(), truth()[1])
    return (
        float(losses['loss_predicate']) / head.loss_weight,
        float(losses['loss_connectivity']) / head.connectivity_weight,
    )


# ---- the published code ----------------------------------------------------------------------


@pytest.mark.parametrize(('key', 'bias'), [('pred_rel', True), ('pred_rel_without_bias', False)])
def test_forward_equals_published(key, bias):
    logits = make_head(bias)(states())
    pairs = (QUERIES, QUERIES)
    expected = published(key, *pairs, PREDICATES)
    torch.testing.assert_close(logits.predicates.sigmoid(), expected, atol=1e-8, rtol=0)
    expected = published('pred_connectivity', *pairs)
    torch.testing.assert_close(logits.connectivity.sigmoid(), expected, atol=1e-8, rtol=0)


def test_matches_equal_published():
    for match, (queries, objects), uncertainty in zip(
        matched(), PUBLISHED['matched'], PUBLISHED['uncertainty'], strict=True
    ):
        assert match.queries.tolist() == queries
        assert match.position.tolist() == [objects.index(i) for i in range(len(objects))]
        quality = match_quality(match.excess, 1e-14)
        np.testing.assert_allclose(1 - quality.numpy(), uncertainty, atol=1e-6)


@pytest.mark.parametrize(
    ('key', 'bias', 'count'),
    [
        ('loss_rel', True, (2, 3)),
        ('loss_rel_without_bias', False, (2, 3)),
        ('loss_rel_all', True, (None, None)),
    ],
)
def test_losses_equal_published(key, bias, count):
    head = make_head(bias, num_negatives=count[0], num_nonmatching=count[1])
    predicate, connectivity = loss_of(head)
    assert predicate == pytest.approx(PUBLISHED[key], rel=1e-6)
    assert connectivity == pytest.approx(PUBLISHED['loss_connectivity'], rel=1e-6)


def test_ranking_equals_published():
    head = make_head()
    cfg = dict(
        max_objects=None,
        max_pairs=None,
        require_overlap=False,
        nms_iou_thr=None,
        max_relations=None,
    )
    model = SimpleNamespace(
        relation_head=head, relation_test_cfg=cfg, protocol=SceneGraphProtocol.SGDET
    )
    given = states()
    with torch.no_grad():
        scores = head.scores(head(given))
    for image, expected in enumerate(PUBLISHED['ranking']):
        sample = SimpleNamespace(img_shape=SHAPE)
        objects, relations = QueryRelations(model)._graph(given, scores[image], image, sample)
        rank = objects.scores[relations.pairs].prod(dim=1) * relations.scores.amax(dim=1)
        best = rank.topk(len(expected)).indices
        np.testing.assert_allclose(rank[best].numpy(), [row[2] for row in expected], atol=1e-8)
        # Objects are sorted by score: their queries, by the boxes.
        pixels = pixel_boxes(given.boxes[image], SHAPE)
        size = torch.tensor([SHAPE[1], SHAPE[0]] * 2)
        pixels = torch.minimum(pixels.clamp(min=0), size).float()
        query = torch.cdist(objects.bboxes, pixels).argmin(dim=1)
        assert query[relations.pairs[best]].tolist() == [row[:2] for row in expected]


def test_adjustment_is_the_published_one_up_to_a_constant():
    """Here relative to the most frequent predicate, there to all."""
    head = make_head(debias=dict(type='LogitAdjustment', tau=0.3)).eval()
    given = states()
    logits = head(given)
    scores = head.scores(logits) / logits.connectivity.sigmoid()[..., None]
    adjusted = published('pred_rel_adjusted', QUERIES, QUERIES, PREDICATES)
    constant = 0.3 * np.log(max(PUBLISHED['rel_dist']))
    # Outside, the rounded probabilities do not determine the logit.
    shown = (adjusted > 1e-3) & (adjusted < 0.999)
    assert shown.sum() > 50
    torch.testing.assert_close(
        scores.logit()[shown], adjusted.logit()[shown] + constant, atol=1e-4, rtol=0
    )


# ---- the formulas ----------------------------------------------------------------------------


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def perceptron(x, mlp):
    for i, layer in enumerate(mlp.layers):
        x = x @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()
        x = x if i == len(mlp.layers) - 1 else np.maximum(x, 0)
    return x


def by_hand(head, given):
    """Equations 4 to 8 of the paper, pair by pair and layer by layer."""
    linear = [*head.proj_q, head.final_sub_proj], [*head.proj_k, head.final_obj_proj]
    sources = [*given.queries, given.hidden], [*given.keys, given.hidden]
    subject, object_ = (
        [
            x.numpy() @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()
            for layer, x in zip(layers, inputs, strict=True)
        ]
        for layers, inputs in zip(linear, sources, strict=True)
    )
    gate_w = head.rel_predictor_gate.weight.detach().numpy()[0]
    gate_b = float(head.rel_predictor_gate.bias)
    predicates = np.zeros((BATCH, QUERIES, QUERIES, PREDICATES))
    connectivity = np.zeros((BATCH, QUERIES, QUERIES))
    for b, i, j in np.ndindex(BATCH, QUERIES, QUERIES):
        total = np.zeros(2 * DIM)
        for s, o in zip(subject, object_, strict=True):
            pair = np.concatenate([s[b, i], o[b, j]])
            total += sigmoid(pair @ gate_w + gate_b) * pair
        predicates[b, i, j] = perceptron(total, head.rel_predictor)
        connectivity[b, i, j] = perceptron(total, head.connectivity_layer)[0]
    return predicates, connectivity


def test_forward_equals_the_formula():
    head, given = make_head(bias=False), states()
    logits = head(given)
    predicates, connectivity = by_hand(head, given)
    np.testing.assert_allclose(logits.predicates.detach().numpy(), predicates, atol=1e-10)
    np.testing.assert_allclose(logits.connectivity.detach().numpy(), connectivity, atol=1e-10)
    scores = sigmoid(predicates) * sigmoid(connectivity)[..., None]
    np.testing.assert_allclose(head.scores(logits).detach().numpy(), scores, atol=1e-10)


def test_log_count_bias_equals_the_formula():
    counts = drawn()[3].astype(float)
    counts[0, 1] = 0  # classes without a relation have no preference
    bias = MODELS.build(dict(type='LogCountBias', num_classes=4, num_predicates=5)).double()
    bias.set_counts(counts, np.zeros((4, 4)))
    assert not bias.weight.requires_grad
    labels, pairs = torch.arange(4), torch.cartesian_prod(torch.arange(4), torch.arange(4))
    found = bias(labels, pairs).numpy().reshape(4, 4, 6)
    expected = np.log(counts + 1e-12 / (counts.sum(2, keepdims=True) + 1e-12))
    np.testing.assert_allclose(found[..., :5], expected, atol=1e-6)
    np.testing.assert_allclose(found[0, 1], 0, atol=1e-6)
    assert (found[..., 5] == 0).all()


def entropy(logit, target):
    p = sigmoid(logit)
    return -(target * np.log(p) + (1 - target) * np.log(1 - p))


def loss_by_hand(logits, match, triplets, quality, negatives, nonmatching, ignored=()):
    """Predicate losses of one image, and its connectivity losses."""
    row = {int(q): i for i, q in enumerate(match.queries)}
    back = {int(p): i for i, p in enumerate(match.position) if p >= 0}
    predicates, connectivity = logits
    right, wrong, others, connected = {}, [], [], []
    for s, o, p in triplets:
        if match.position[s] >= 0 and match.position[o] >= 0:
            key = (int(match.queries[match.position[s]]), int(match.queries[match.position[o]]))
            right[(*key, p)] = quality[row[key[0]]] * quality[row[key[1]]]
    related = {key[:2] for key in right}
    for i, j in np.ndindex(connectivity.shape):
        inside = i in row and j in row
        pair = (back[row[i]], back[row[j]]) if inside else None
        if pair in ignored and (i, j) not in related:
            continue
        connected.append(entropy(connectivity[i, j], float((i, j) in related)))
        values = [predicates[i, j, p] for p in range(PREDICATES) if (i, j, p) not in right]
        (wrong if inside else others).extend(values)
    losses = [entropy(predicates[key], target) for key, target in right.items()]
    for part, count in ((wrong, negatives), (others, nonmatching)):
        part = sorted(part, reverse=True)
        part = part if count is None else part[: count * len(right)]
        losses += [entropy(value, 0.0) for value in part]
    return losses, connected


@pytest.mark.parametrize('smoothing', [1e-14, 1e-6, None])
@pytest.mark.parametrize('counts', [(2, 3), (0, 0), (None, 1), (80, None)])
def test_losses_equal_the_formula(counts, smoothing):
    head = make_head(num_negatives=counts[0], num_nonmatching=counts[1], smoothing=smoothing)
    logits, matches = head(states()), matched()
    relations = truth()[1]
    # The second image: an ignored pair, which is neither right nor wrong.
    relations[1] = InstanceData(pairs=torch.tensor([[1, 0], [0, 1]]), labels=torch.tensor([2, -1]))
    losses, connected = [], []
    for i, match in enumerate(matches):
        quality = np.ones(len(match.queries))
        if smoothing is not None:
            shift = np.log(1 / smoothing - 1)
            quality = 1 - sigmoid(match.excess.numpy() - shift)
        arrays = [part[i].detach().numpy() for part in logits]
        part = loss_by_hand(
            arrays, match, RELATIONS[i], quality, *counts, ignored=[(0, 1)] if i else ()
        )
        losses += part[0]
        connected += part[1]
    found = head.loss(logits, matches, relations)
    assert float(found['loss_predicate']) == pytest.approx(15 * np.mean(losses), rel=1e-9)
    assert float(found['loss_connectivity']) == pytest.approx(30 * np.mean(connected), rel=1e-9)


def test_cost_of_a_perfect_match_has_the_quality_of_the_smoothing():
    costs = [TASK_UTILS.build(dict(cost)) for cost in COSTS]
    # The lowest values of the three costs, by hand: 2 * 0.75 * ln(1e-8), 0 and -2.
    assert lowest_cost(costs) == pytest.approx(1.5 * np.log(1e-8) - 2)
    softmax = [dict(type='ClassificationCost', weight=3.0), dict(type='IoUCost', weight=2.0)]
    assert lowest_cost([TASK_UTILS.build(cost) for cost in softmax]) == -5
    quality = match_quality(torch.zeros(1, dtype=torch.float64), 1e-3)
    assert float(quality) == pytest.approx(1 - 1e-3)
    with pytest.raises(ValueError, match='lowest value of a DiceCost is not known; valid: Focal'):
        lowest_cost([TASK_UTILS.build(dict(type='DiceCost'))])


# ---- edges -----------------------------------------------------------------------------------


def test_image_without_objects_and_image_without_relations():
    costs = [TASK_UTILS.build(dict(cost)) for cost in COSTS]
    given, empty = states(), InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0).long())
    none = InstanceData(pairs=torch.zeros(0, 2).long(), labels=torch.zeros(0).long())
    match = match_queries(costs, given.logits[0], given.boxes[0], empty, dict(img_shape=SHAPE))
    assert match.queries.tolist() == match.position.tolist() == []
    head = make_head()
    logits = head(given)
    losses = head.loss(logits, [match, matched()[1]], [none, none])
    assert float(losses['loss_predicate']) == 0
    expected = entropy(logits.connectivity.detach().numpy(), 0.0).mean()
    assert float(losses['loss_connectivity']) == pytest.approx(30 * expected)
    assert 'acc_predicate' not in losses
    sum(losses.values()).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in head.parameters())


def test_object_without_query_loses_its_relations():
    """Three objects, two queries: a relation of the third has no target."""
    head = make_head(num_negatives=0, num_nonmatching=0)
    given = states()
    logits = QueryLogits(*(part[:1, :2, :2] for part in head(given)))
    costs = [TASK_UTILS.build(dict(cost)) for cost in COSTS]
    objects, relations = truth()
    boxes = pixel_boxes(given.boxes[0, :2], SHAPE)
    match = match_queries(costs, given.logits[0, :2], boxes, objects[0], dict(img_shape=SHAPE))
    assert sorted(match.position.tolist()) == [-1, 0, 1]
    lost = match.position.tolist().index(-1)
    kept = [t for t in RELATIONS[0] if lost not in t[:2]]
    target, known = head._targets(match, relations[0])
    assert int(target.sum()) == len(kept)
    assert known.all()
    losses = head.loss(logits, [match], relations[:1])
    assert losses['loss_predicate'].isfinite()


def test_random_negatives_are_drawn_from_all():
    head = make_head(num_negatives=1, num_nonmatching=1, hard_negatives=False)
    head.hard_nonmatching = False
    torch.manual_seed(0)
    values = {round(loss_of(head)[0], 6) for _ in range(8)}
    hard = make_head(num_negatives=1, num_nonmatching=1)
    assert len(values) > 1
    assert max(values) <= loss_of(hard)[0] + 1e-6


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(smoothing=0), r'smoothing must be in \(0, 1\), or None, got 0'),
        (dict(smoothing=float('nan')), 'smoothing must be in'),
        (dict(num_negatives=-1), 'num_negatives must be at least 0, or None, got -1'),
        (dict(num_nonmatching=-2), 'num_nonmatching must be at least 0'),
        (dict(loss_weight=-1), 'loss_weight must be a finite number of at least 0, got -1'),
        (dict(connectivity_weight=float('inf')), 'connectivity_weight must be a finite'),
        (dict(debias=dict(type='TDE')), 'debias: TDE cannot correct an EGTRHead'),
        (dict(protocol='predcls'), "protocol='predcls' gives boxes, but an EGTRHead relates"),
        (dict(protocol='sgcls'), "protocol='sgcls' gives boxes"),
    ],
)
def test_bad_option_raises(options, message):
    with pytest.raises(ValueError, match=message):
        make_head(**options)
