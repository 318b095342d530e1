"""Every context overfits eight pictures with every kind of clipping, also after a spike."""

import numpy as np
import pytest
from mmengine.optim import build_optim_wrapper

from gclip_mm.scene_graph.evaluation import scene_graph_recall

CLIPPING = {
    'value': dict(type='ValueClip', clip_value=0.05),
    'norm': dict(type='NormClip', max_norm=2.0),
    'agc': dict(
        type='AGC', clip_factor=0.1, exclude=['frequency_bias', 'fc_predicate', 'fc_scene']
    ),
}
CONTEXT_NAMES = [
    'IdentityContext',
    'RNNContext',
    'CRNNContext',
    'TransformerContext',
    'IMPContext',
]
ITERS = 60


def recall(graphs, k=20):
    predictions = [
        dict(
            bboxes=g.pred_instances.bboxes.numpy(),
            labels=g.pred_instances.labels.numpy(),
            scores=g.pred_instances.scores.numpy(),
            pairs=g.pred_relations.pairs.numpy(),
            rel_scores=g.pred_relations.scores.numpy(),
        )
        for g in graphs
    ]
    truths = [
        dict(
            bboxes=g.gt_instances.bboxes.numpy(),
            labels=g.gt_instances.labels.numpy(),
            relations=np.column_stack([g.gt_relations.pairs, g.gt_relations.labels]),
        )
        for g in graphs
    ]
    return scene_graph_recall(predictions, truths, ks=(k,))[f'R@{k}']


def train(model, batch, clip_grad, iters, spike_at=None):
    model.train()
    wrapper = build_optim_wrapper(
        model,
        dict(
            type='GClipOptimWrapper',
            optimizer=dict(type='AdamW', lr=3e-3, weight_decay=0.0),
            clip_grad=clip_grad,
        ),
    )
    batch = model.data_preprocessor(batch, True)
    for step in range(iters):
        loss, _ = model.parse_losses(model(**batch, mode='loss'))
        if step == spike_at:
            loss = loss * 1e6
        with wrapper.optim_context(model):
            wrapper.update_params(loss)


@pytest.mark.parametrize('clip', CLIPPING)
@pytest.mark.parametrize('context', CONTEXT_NAMES)
def test_model_overfits_eight_pictures(make_model, make_batch, predict, context, clip):
    model, pictures = make_model(context), range(8)
    before = recall(predict(model, make_batch(pictures)))
    train(model, make_batch(pictures), CLIPPING[clip], ITERS)
    after = recall(predict(model, make_batch(pictures)))
    assert before < 0.6  # the counts of the bias are random, so the initial recall is low
    assert after > 0.95


@pytest.mark.parametrize('clip', CLIPPING)
@pytest.mark.parametrize('context', ['RNNContext', 'CRNNContext', 'TransformerContext'])
def test_training_recovers_after_spike(make_model, make_batch, predict, context, clip):
    model = make_model(context)
    before = recall(predict(model, make_batch(range(2))))
    train(model, make_batch(range(2)), CLIPPING[clip], 30, spike_at=10)
    assert all(p.isfinite().all() for p in model.parameters())
    assert recall(predict(model, make_batch(range(2)))) > before + 0.2
