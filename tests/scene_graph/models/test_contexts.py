"""Contract of all contexts, and each context against a plain loop over one image."""

import pytest
import torch
from mmdet.registry import MODELS
from torch.nn import functional as F

from gclip_mm.scene_graph.models import BaseContext
from gclip_mm.scene_graph.models.contexts import RNNContext
from gclip_mm.scene_graph.models.contexts.base import build_context
from gclip_mm.scene_graph.models.contexts.sequences import order_objects

IN_DIM, CHANNELS, MAP = 12, 6, 5
SMALL = {
    'IdentityContext': {},
    'RNNContext': dict(hidden_dim=8),
    'CRNNContext': dict(hidden_dim=8, conv_channels=4),
    'TransformerContext': dict(
        hidden_dim=8, num_heads=2, num_layers=2, num_edge_layers=1, ffn_dim=16
    ),
    'IMPContext': dict(hidden_dim=8),
}
VARIANTS = [
    *SMALL.items(),
    ('RNNContext', dict(hidden_dim=8, cell='rnn', ordering='size')),
    ('RNNContext', dict(hidden_dim=8, cell='gru', bidirectional=False, num_layers=2, dropout=0.3)),
    ('CRNNContext', dict(hidden_dim=8, conv_channels=4, cell='lstm', ordering='confidence')),
    ('TransformerContext', {**SMALL['TransformerContext'], 'norm': 'post'}),
    ('IMPContext', dict(hidden_dim=8, num_iters=0)),
    ('IMPContext', dict(hidden_dim=8, num_iters=3, aggregate='mean')),
]


def build(name, **options):
    torch.manual_seed(0)
    cfg = dict(type=name, in_dim=IN_DIM, union_channels=CHANNELS, **options)
    return MODELS.build(cfg).double().eval()


def inputs(num_objs, seed=0, every_pair=True):
    """Random objects in images, with all ordered pairs of each image or every second one."""
    g = torch.Generator().manual_seed(seed)
    count = sum(num_objs)
    corner = torch.rand(count, 2, generator=g, dtype=torch.float64) * 100
    size = torch.rand(count, 2, generator=g, dtype=torch.float64) * 40 + 1
    score = torch.rand(count, 1, generator=g, dtype=torch.float64)
    pairs, start = [], 0
    for n in num_objs:
        pairs += [(start + i, start + j) for i in range(n) for j in range(n) if i != j]
        start += n
    pairs = torch.tensor(pairs[:: 1 if every_pair else 2], dtype=torch.int64).reshape(-1, 2)
    return dict(
        obj_feats=torch.randn(count, IN_DIM, generator=g, dtype=torch.float64),
        boxes=torch.cat([corner, corner + size, score], 1),
        num_objs=list(num_objs),
        union_feats=torch.randn(len(pairs), CHANNELS, MAP, MAP, generator=g, dtype=torch.float64),
        pairs=pairs,
    )


def image_of(data, i):
    """Inputs of image i, and its rows of objects and pairs."""
    start = sum(data['num_objs'][:i])
    stop = start + data['num_objs'][i]
    rows = (data['pairs'][:, 0] >= start) & (data['pairs'][:, 0] < stop)
    alone = dict(
        obj_feats=data['obj_feats'][start:stop],
        boxes=data['boxes'][start:stop],
        num_objs=[stop - start],
        union_feats=data['union_feats'][rows],
        pairs=data['pairs'][rows] - start,
    )
    return alone, slice(start, stop), rows


def test_all_registered_contexts_are_tested():
    registered = {
        name
        for name, cls in MODELS.module_dict.items()
        if issubclass(cls, BaseContext) and cls.__module__.startswith('gclip_mm.')
    }
    assert registered == set(SMALL)


@pytest.mark.parametrize('name, options', VARIANTS)
@pytest.mark.parametrize('num_objs', [(3, 0, 1, 4), (1,), (0,), (0, 0), (2,)])
def test_outputs_have_declared_shapes_and_gradients(name, options, num_objs):
    context = build(name, **options).train()
    data = inputs(num_objs, every_pair=False)
    obj_ctx, edge_ctx = context(**data)
    assert obj_ctx.shape == (sum(num_objs), context.out_dim)
    assert edge_ctx.shape == (len(data['pairs']), context.edge_dim)
    if obj_ctx.requires_grad:
        (obj_ctx.sum() + edge_ctx.sum()).backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in context.parameters())


@pytest.mark.parametrize('name, options', VARIANTS)
def test_batch_equals_single_images(name, options):
    context, data = build(name, **options), inputs((3, 0, 1, 5, 2))
    obj_ctx, edge_ctx = context(**data)
    for i in range(5):
        alone, objs, pairs = image_of(data, i)
        single_obj, single_edge = context(**alone)
        torch.testing.assert_close(obj_ctx[objs], single_obj)
        torch.testing.assert_close(edge_ctx[pairs], single_edge)


@pytest.mark.parametrize('name, options', VARIANTS)
def test_context_is_equivariant_to_order(name, options):
    """Transformer, IMP and identity are equivariant by design; RNN and CRNN sort."""
    context, data = build(name, **options), inputs((4, 3))
    obj_ctx, edge_ctx = context(**data)
    g = torch.Generator().manual_seed(1)
    order = torch.cat([torch.randperm(4, generator=g), 4 + torch.randperm(3, generator=g)])
    new_place = torch.empty_like(order)
    new_place[order] = torch.arange(7)
    shuffle = torch.cat([torch.randperm(12, generator=g), 12 + torch.randperm(6, generator=g)])
    moved_obj, moved_edge = context(
        data['obj_feats'][order],
        data['boxes'][order],
        data['num_objs'],
        data['union_feats'][shuffle],
        new_place[data['pairs']][shuffle],
    )
    torch.testing.assert_close(moved_obj, obj_ctx[order])
    torch.testing.assert_close(moved_edge, edge_ctx[shuffle])


@pytest.mark.parametrize('name', [name for name in SMALL if name != 'IdentityContext'])
def test_changing_one_object_changes_context_of_others(name):
    context, data = build(name, **SMALL[name]), inputs((3,))
    data['obj_feats'].requires_grad_()
    data['union_feats'].requires_grad_()
    context(**data)[0][0].pow(2).sum().backward()
    # In CRNN an object sees the others through its pairs.
    assert (data['obj_feats'].grad.abs().sum(1) > 0).all()


def test_identity_context_returns_features():
    data = inputs((3,))
    obj_ctx, edge_ctx = build('IdentityContext')(**data)
    assert torch.equal(obj_ctx, data['obj_feats'])
    for row, (s, o) in zip(edge_ctx, data['pairs'].tolist(), strict=True):
        assert torch.equal(row, torch.cat([data['obj_feats'][s], data['obj_feats'][o]]))


@pytest.mark.parametrize('cell', ['rnn', 'gru', 'lstm'])
def test_rnn_context_equals_torch_rnn_over_sorted_objects(cell):
    context, data = build('RNNContext', hidden_dim=8, cell=cell), inputs((5,))
    center = (data['boxes'][:, 0] + data['boxes'][:, 2]) / 2
    order = center.argsort()
    states, _ = context.obj_rnn.rnn(data['obj_feats'][order][None])
    expected = torch.empty_like(states[0])
    expected[order] = states[0]
    obj_ctx, edge_ctx = context(**data)
    torch.testing.assert_close(obj_ctx, expected)
    edge_in = torch.cat([data['obj_feats'][order], states[0]], 1)
    edge_states = torch.empty_like(states[0])
    edge_states[order] = context.edge_rnn.rnn(edge_in[None])[0][0]
    s, o = data['pairs'][7].tolist()
    pair = context.compose.subject(edge_states[s]) + context.compose.object(edge_states[o])
    torch.testing.assert_close(edge_ctx[7], pair.relu())


def test_crnn_context_equals_rnn_over_partners_of_each_subject():
    context, data = build('CRNNContext', hidden_dim=8, conv_channels=4), inputs((4,))
    _, edge_ctx = context(**data)
    objs = context.encode_obj(data['obj_feats']).relu()
    left_right = ((data['boxes'][:, 0] + data['boxes'][:, 2]) / 2).tolist()
    for subject in range(4):
        rows = [r for r, (s, _) in enumerate(data['pairs'].tolist()) if s == subject]
        rows.sort(key=lambda r: left_right[data['pairs'][r, 1]])
        maps = data['union_feats'][rows]
        for conv in context.convs:
            maps = F.relu(F.conv2d(maps, conv.conv.weight, conv.conv.bias, padding=1))
        vectors = context.encode_map(maps)
        partners = objs[data['pairs'][rows, 1]]
        sequence = torch.cat([vectors, objs[subject].expand(3, -1), partners], 1)
        torch.testing.assert_close(edge_ctx[rows], context.rnn.rnn(sequence[None])[0][0])


@pytest.mark.parametrize('aggregate', ['sum', 'mean'])
def test_imp_context_equals_formulas_of_paper(aggregate):
    """arXiv 1701.02426, section 3: gated messages, a GRU for objects and a GRU for pairs."""
    context = build('IMPContext', hidden_dim=8, num_iters=2, aggregate=aggregate)
    data = inputs((4,))
    pairs = data['pairs'].tolist()
    zero = torch.zeros(1, 8, dtype=torch.float64)
    obj = [context.obj_gru(context.obj_in(x[None]).relu(), zero)[0] for x in data['obj_feats']]
    edge = [context.edge_gru(context.edge_in(x[None]), zero)[0] for x in data['union_feats']]

    def gated(gate, receiver, message):
        weight = gate.fc.weight[0] @ torch.cat([receiver, message]) + gate.fc.bias[0]
        return message / (1 + torch.exp(-weight))

    for _ in range(2):
        to_obj = []
        for i in range(4):
            out = [
                gated(context.from_outgoing, obj[i], edge[e])
                for e, (s, _) in enumerate(pairs)
                if s == i
            ]
            into = [
                gated(context.from_incoming, obj[i], edge[e])
                for e, (_, o) in enumerate(pairs)
                if o == i
            ]
            both = sum(out) + sum(into)
            to_obj.append(both if aggregate == 'sum' else sum(out) / 3 + sum(into) / 3)
        to_edge = [
            gated(context.from_subject, edge[e], obj[s])
            + gated(context.from_object, edge[e], obj[o])
            for e, (s, o) in enumerate(pairs)
        ]
        obj = [context.obj_gru(m[None], h[None])[0] for m, h in zip(to_obj, obj, strict=True)]
        edge = [context.edge_gru(m[None], h[None])[0] for m, h in zip(to_edge, edge, strict=True)]
    obj_ctx, edge_ctx = context(**data)
    torch.testing.assert_close(obj_ctx, torch.stack(obj))
    torch.testing.assert_close(edge_ctx, torch.stack(edge))


def test_transformer_layers_have_different_initial_weights():
    layers = build('TransformerContext', **SMALL['TransformerContext']).obj_encoder.layers
    assert not torch.equal(layers[0].linear1.weight, layers[1].linear1.weight)


def test_order_objects_sorts_by_each_ordering():
    boxes = torch.tensor(
        [
            [10.0, 0, 20, 10, 0.5],  # centre 15, area 100
            [0.0, 0, 4, 4, 0.9],  # centre 2, area 16
            [12.0, 5, 18, 10, 0.5],  # centre 15, area 30, lower
            [0.0, 0, 50, 50, 0.1],  # image 1
        ]
    )
    assert order_objects(boxes, [3, 1], 'left_right').tolist() == [1, 0, 2, 3]
    assert order_objects(boxes, [3, 1], 'confidence').tolist() == [1, 0, 2, 3]
    assert order_objects(boxes, [3, 1], 'size').tolist() == [0, 2, 1, 3]
    assert order_objects(boxes, [0, 1, 3], 'size').tolist() == [0, 3, 2, 1]


@pytest.mark.parametrize(
    'name, options, message',
    [
        ('RNNContext', dict(cell='cnn'), "cell must be one of .*'lstm'.*'cnn'"),
        ('RNNContext', dict(ordering='random'), "ordering must be one of .*'random'"),
        ('RNNContext', dict(hidden_dim=7), 'hidden_dim=7'),
        ('CRNNContext', dict(num_convs=0), 'num_convs must be at least 1'),
        ('CRNNContext', dict(ordering='x'), 'ordering must be one of'),
        ('TransformerContext', dict(norm='none'), "norm must be 'pre' or 'post'"),
        ('TransformerContext', dict(hidden_dim=10, num_heads=4), 'num_heads=4 does not divide'),
        ('IMPContext', dict(num_iters=-1), 'num_iters must be at least 0'),
        ('IMPContext', dict(aggregate='max'), "aggregate must be 'sum' or 'mean'"),
    ],
)
def test_bad_option_raises_with_its_name(name, options, message):
    with pytest.raises(ValueError, match=message):
        build(name, **options)


def test_unknown_type_or_key_raises_with_valid_ones():
    sizes = dict(in_dim=4, union_channels=2)
    with pytest.raises(ValueError, match=r"one of \['CRNNContext', .*got 'RNNConText'"):
        build_context(dict(type='RNNConText', **sizes))
    with pytest.raises(ValueError, match='one of .*got None'):
        build_context(sizes)
    with pytest.raises(ValueError, match=r"no 'cell'; its keys: .*'num_heads'.*_delete_=True"):
        build_context(dict(type='TransformerContext', cell='lstm', **sizes))
    assert isinstance(build_context(dict(type=RNNContext, hidden_dim=8, **sizes)), RNNContext)
