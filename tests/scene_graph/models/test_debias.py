"""Debiasing against the formulas in NumPy, and against Scene-Graph-Benchmark's causal predictor."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from mmdet.registry import MODELS
from torch.nn import functional as F

from gclip_mm.scene_graph.models import TDE, CountWeightedCrossEntropy, LogitAdjustment
from gclip_mm.scene_graph.models.heads.frequency_bias import save_counts

COUNTS = np.array([400, 30, 0, 2])  # of 4 predicates; one never occurs


def relations(counts=COUNTS, classes=3):
    """Counts (C, C, P) with these sums."""
    rng = np.random.default_rng(0)
    result = np.zeros((classes, classes, len(counts)), np.int64)
    for p, count in enumerate(counts):
        flat = rng.multinomial(count, np.full(classes**2, 1 / classes**2))
        result[:, :, p] = flat.reshape(classes, classes)
    return result, np.full((classes, classes), 7)


def softmax(logits):
    exp = np.exp(logits - logits.max(1, keepdims=True))
    return exp / exp.sum(1, keepdims=True)


@pytest.mark.parametrize('tau', [0.0, 0.3, 0.6, 1.0])
def test_logit_adjustment_equals_the_formula_and_masks_unseen_predicates(tau):
    logits = np.random.default_rng(1).normal(size=(5, 5))
    debias = LogitAdjustment(num_predicates=4, tau=tau)
    debias.set_counts(*relations())
    given = torch.tensor(logits)
    assert debias(given, None, None) is given  # training is not changed
    scores = debias.eval()(given, None, None).softmax(1).numpy()
    # p(y | x) / prior(y) ** tau, without the predicate that never occurs.
    seen = [0, 1, 3]
    expected = softmax(logits)
    expected[:, seen] /= (COUNTS[seen] / COUNTS.max()) ** tau
    expected[:, 2] = 0
    expected /= expected.sum(1, keepdims=True)
    np.testing.assert_allclose(scores, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32])
def test_masked_predicates_have_no_score_in_any_precision(dtype):
    debias = LogitAdjustment(num_predicates=4, tau=1.0).eval()
    debias.set_counts(*relations())
    scores = debias(torch.full((2, 5), 3.0, dtype=dtype), None, None).float().softmax(1)
    assert (scores[:, 2] == 0).all() and scores.isfinite().all()


def test_counts_come_from_a_checkpoint_or_a_file(tmp_path):
    trained = LogitAdjustment(num_predicates=4)
    trained.set_counts(*relations())
    other = LogitAdjustment(num_predicates=4).eval()
    with pytest.raises(
        RuntimeError, match='LogitAdjustment has no counts: add .*FrequencyBiasHook'
    ):
        other(torch.zeros(1, 5), None, None)
    other.load_state_dict(trained.state_dict())
    assert torch.equal(other.counts, torch.tensor(COUNTS))
    save_counts(tmp_path / 'counts.npz', *relations())
    loaded = LogitAdjustment(num_predicates=4, file=str(tmp_path / 'counts.npz'))
    assert torch.equal(loaded.counts, other.counts)
    assert not loaded.state_dict()  # so that a checkpoint without counts still fits
    with pytest.raises(ValueError, match='has 5 predicates, but the counts are of 4'):
        LogitAdjustment(num_predicates=5, file=str(tmp_path / 'counts.npz'))


def causal_predictor(visual, context, frequency, average):
    """The 'sum' fusion and TDE of Tang et al.: linear branches, and the context replaced."""
    return (visual + context + frequency) - (visual + average + frequency)


def test_tde_equals_the_causal_predictor_with_linear_branches():
    """Its moving average starts at 0 and is not corrected."""
    rng = np.random.default_rng(2)
    weight, seen = rng.normal(size=(5, 6)), rng.normal(size=(7, 5))
    frequency = rng.normal(size=(7, 5))
    debias = TDE(num_predicates=4, fc_dim=6, momentum=0.0005, correct=False).double()
    average = np.zeros(6)
    for _ in range(3):
        batch = rng.normal(size=(9, 6)) + 1
        average = average * (1 - 0.0005) + 0.0005 * batch.mean(0)
        given = torch.zeros(9, 5)
        assert debias.train()(given, torch.tensor(batch), None) is given
    np.testing.assert_allclose(debias.average.numpy(), average, rtol=1e-9)

    def from_context(edge):
        return torch.tensor(seen) + edge @ torch.tensor(weight).T + torch.tensor(frequency)

    context = torch.tensor(rng.normal(size=(7, 6)))
    result = debias.eval()(from_context(context), context, from_context).numpy()
    expected = causal_predictor(seen, context.numpy() @ weight.T, frequency, average @ weight.T)
    np.testing.assert_allclose(result, expected, atol=1e-9)


def test_corrected_average_is_the_mean_of_equal_batches():
    debias = TDE(num_predicates=4, fc_dim=2, momentum=0.01)
    for _ in range(3):
        debias(torch.zeros(2, 5), torch.tensor([[1.0, 3.0], [3.0, 5.0]]), None)
    identity = debias.eval()(torch.zeros(1, 2), torch.zeros(1, 2), lambda edge: edge)
    np.testing.assert_allclose(identity.numpy(), [[-2.0, -4.0]], rtol=1e-5)
    # A batch that is not finite, or empty, leaves the average as it is.
    before = debias.average.clone()
    debias.train()(torch.zeros(1, 5), torch.full((1, 2), float('nan')), None)
    debias(torch.zeros(0, 5), torch.zeros(0, 2), None)
    assert torch.equal(debias.average, before)


def test_tde_of_the_head_replaces_the_context_only(make_model, make_batch, loss_of, predict):
    model = make_model('RNNContext', relation_head=dict(debias=dict(type='TDE', momentum=0.5)))
    head = model.relation_head
    with pytest.raises(RuntimeError, match='TDE has no average context'):
        predict(model, make_batch(range(2)))
    model.train()
    loss_of(model, make_batch(range(4)))
    assert head.debias.average.abs().sum() > 0
    corrected = predict(model, make_batch(range(2)))
    debias, head.debias = head.debias, None
    plain = predict(model, make_batch(range(2)))
    # The factual logits minus those with the average context at every pair.
    average = (debias.average / debias.weight).detach()
    edges = []
    handle = head.edge_fc.register_forward_hook(lambda *a: edges.append(a[-1]))
    model.eval()
    with torch.no_grad():
        factual = model._forward(**counter_batch(model, make_batch(range(2))))[1]
        likeness = []
        other = head.likeness_fc.register_forward_hook(
            lambda module, given, output: likeness.append(output) or average - edges[-1]
        )
        counter = model._forward(**counter_batch(model, make_batch(range(2))))[1]
    handle.remove()
    other.remove()
    expected = (factual - counter).softmax(1)[:, :-1]
    found = torch.cat([sample.pred_relations.scores for sample in corrected])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    assert not torch.allclose(found, torch.cat([s.pred_relations.scores for s in plain]))


def counter_batch(model, batch):
    data = model.data_preprocessor(batch, False)
    return dict(batch_inputs=data['inputs'], batch_data_samples=data['data_samples'])


@pytest.mark.parametrize('beta', [0.0, 0.9, 0.999])
def test_count_weighted_cross_entropy_equals_the_formula(beta):
    rng = np.random.default_rng(3)
    logits, labels = rng.normal(size=(8, 5)), np.array([0, 1, 3, 4, 4, 0, 1, 4])
    loss = CountWeightedCrossEntropy(beta=beta, loss_weight=2.0)
    loss.set_counts(*relations())
    seen = COUNTS > 0
    effective = (1 - beta ** COUNTS[seen]) / (1 - beta)
    weight = np.ones(5)
    per_relation = np.repeat(1 / effective, COUNTS[seen])
    weight[:4][seen] = (1 / effective) / per_relation.mean()
    nll = -np.log(softmax(logits)[np.arange(8), labels])
    value = loss(torch.tensor(logits), torch.tensor(labels), avg_factor=8)
    np.testing.assert_allclose(value.item(), 2 * (weight[labels] * nll).sum() / 8, rtol=1e-6)
    if beta == 0:
        plain = F.cross_entropy(torch.tensor(logits), torch.tensor(labels))
        assert value.item() == pytest.approx(2 * plain.item())
    # A flip may create a predicate that was never annotated.
    assert loss(torch.zeros(1, 5), torch.tensor([2]), avg_factor=1).isfinite()


@pytest.mark.parametrize(
    'debias', [dict(type='LogitAdjustment', tau=0.6), dict(type='TDE')], ids=lambda cfg: cfg['type']
)
def test_every_debiasing_trains_and_predicts_with_the_head(
    debias, make_model, make_batch, loss_of, predict
):
    loss = dict(type='CountWeightedCrossEntropy')
    model = make_model('IdentityContext', relation_head=dict(debias=debias, loss_predicate=loss))
    counts = relations(np.arange(10) * 5, classes=10)
    for module in model.modules():
        if hasattr(module, 'set_counts'):
            module.set_counts(*counts)
    losses = loss_of(model.train(), make_batch(range(3)))
    losses['loss_predicate'].backward()
    assert losses['loss_predicate'] > 0
    (sample,) = predict(model, make_batch([0]))
    assert sample.pred_relations.scores.isfinite().all()


def test_bad_options_raise():
    for bad in (dict(tau=-1), dict(tau=float('nan'))):
        with pytest.raises(ValueError, match='tau must be'):
            LogitAdjustment(num_predicates=2, **bad)
    with pytest.raises(ValueError, match=r'beta must be in \[0, 1\)'):
        CountWeightedCrossEntropy(beta=1.0)
    with pytest.raises(ValueError, match=r'momentum must be in \(0, 1\]'):
        TDE(num_predicates=2, fc_dim=2, momentum=0.0)
    loss = CountWeightedCrossEntropy()
    with pytest.raises(RuntimeError, match='has no counts: add .*FrequencyBiasHook'):
        loss(torch.zeros(1, 3), torch.zeros(1, dtype=torch.long), avg_factor=1)


def test_head_refuses_what_does_not_fit(make_model):
    with pytest.raises(ValueError, match=r'relation_head\.debias: TDE needs a context'):
        make_model(None, relation_head=dict(debias=dict(type='TDE')))


SIGMOID = ('FocalLoss', 'EQLV2Loss', 'SeesawLoss')


@pytest.mark.parametrize('key', ['loss_predicate', 'loss_object'])
@pytest.mark.parametrize('loss', SIGMOID)
def test_losses_that_prediction_does_not_follow_are_refused(make_model, key, loss):
    with pytest.raises(ValueError, match=rf'relation_head\.{key}: {loss} .*softmax'):
        make_model('IdentityContext', relation_head={key: dict(type=loss)})


def test_every_loss_of_mmdetection_with_sigmoids_is_refused(make_model):
    from gclip_mm.scene_graph.models.heads.relation_head import _softmax_loss

    tried = []
    for name, cls in MODELS.module_dict.items():
        if not name.endswith('Loss') or not cls.__module__.startswith('mmdet.models.losses'):
            continue
        try:
            built = MODELS.build(dict(type=name))
        except (TypeError, AssertionError):  # needs arguments
            continue
        if getattr(built, 'use_sigmoid', False) or getattr(built, 'custom_cls_channels', False):
            tried.append(name)
            with pytest.raises(ValueError, match=name):
                _softmax_loss('loss_predicate', dict(type=name))
    assert set(SIGMOID) <= set(tried)
    sigmoid = dict(type='CrossEntropyLoss', use_sigmoid=True)
    with pytest.raises(ValueError, match='CrossEntropyLoss trains a sigmoid'):
        _softmax_loss('loss_predicate', sigmoid)
    _softmax_loss('loss_predicate', dict(type='CrossEntropyLoss', class_weight=[1.0] * 11))
