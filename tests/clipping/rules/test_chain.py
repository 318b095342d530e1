"""ChainClip: several rules applied in turn."""

import pytest
import torch
from torch import nn

from gclip_mm.clipping import ClipConfigError, attach, parse_clip_grad
from tests.clipping.cases import Runner, equal, norm

SHAPES = [(3, 4), (3,), (2, 3)]


def gradients(seed, size=1.0):
    rng = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=rng) * size for shape in SHAPES]


def chain(*clips, **kwargs):
    return dict(type='ChainClip', clips=list(clips), **kwargs)


AGC = dict(type='AGC', clip_factor=0.3)
VALUE = dict(type='value', clip_value=0.2)
AUTO = dict(type='AutoClip', percentile=40, window=7)
ZCLIP = dict(type='ZClip', warmup_steps=3, z_threshold=0.5, max_norm=None)
NORM = dict(type='NormClip', max_norm=0.7)
NORM_INF = dict(type='NormClip', max_norm=0.2, norm_type='inf')
ADACLIP = dict(type='AdaClip', beta=0.9)
STABILIZER = dict(type='GradientStabilizer')
CARRY = dict(type='NormClip', max_norm=0.7, carry=True)
CHAINS = [
    (NORM,),
    (AGC, NORM),
    (NORM, AGC),
    (VALUE, AUTO, NORM),
    (AUTO, ZCLIP, NORM),
    (AUTO, NORM_INF),
    (NORM_INF, AUTO),
    (NORM, NORM_INF, NORM),
    (ADACLIP, STABILIZER),
    (CARRY, VALUE),
    (NORM, CARRY),
]


@pytest.mark.parametrize('clips', CHAINS, ids=lambda c: ' '.join(x['type'] for x in c))
def test_chain_equals_its_rules_applied_in_turn(clips):
    run = Runner(chain(*clips), SHAPES)
    separate = [Runner(clip, SHAPES) for clip in clips]
    for t in range(12):
        grads = gradients(t, size=20 if t == 9 else 1)
        out, step = run(grads), grads
        fractions = []
        for link in separate:
            step = link(step)
            fractions.append(link.handle.stats()['clip_fraction'])
        for a, b in zip(out, step, strict=True):
            torch.testing.assert_close(a, b, rtol=2e-6, atol=1e-7)
        stats = run.handle.stats()
        p = separate[0].rule.norm_type
        assert stats['grad_norm'] == separate[0].handle.stats()['grad_norm']
        assert stats['grad_norm_post'] == pytest.approx(norm(step, p), rel=1e-5)
        assert stats['clip_coef'] == pytest.approx(norm(step, p) / norm(grads, p), rel=1e-5)
        last = separate[-1].handle.stats()['clip_threshold']
        assert stats['clip_threshold'] == pytest.approx(last, rel=1e-5)
        assert stats['clip_fraction'] == pytest.approx(sum(fractions) / len(fractions), abs=1e-6)


def into_the_kernel(config):
    """Take one step of fused SGD; return the kernel's gradient and divisor, and the weights."""
    params = [nn.Parameter(torch.ones(3))]
    optimizer = torch.optim.SGD(params, lr=1.0, fused=True)
    attach(optimizer, config)
    seen = []

    def look(optimizer, *_):
        seen.extend([params[0].grad.clone(), getattr(optimizer, 'grad_scale', None)])

    optimizer.register_step_pre_hook(look)
    params[0].grad = torch.tensor([3.0, 0.0, 4.0])
    optimizer.step()
    return *seen, params[0].tolist()


def test_global_rules_are_folded_together():
    grad, divisor, weights = into_the_kernel(chain(AUTO, dict(max_norm=0.1)))
    assert grad.tolist() == [3.0, 0.0, 4.0]
    assert float(divisor) == pytest.approx(50, rel=1e-5)
    assert weights == pytest.approx([0.94, 1.0, 0.92], rel=1e-6)


def test_last_global_rule_is_folded():
    grad, divisor, weights = into_the_kernel(
        chain(dict(type='value', clip_value=3.0), dict(max_norm=0.3))
    )
    assert grad.tolist() == [3.0, 0.0, 3.0]
    assert float(divisor) == pytest.approx(18**0.5 / 0.3, rel=1e-5)
    assert weights == pytest.approx([1 - 0.3 / 2**0.5, 1.0, 1 - 0.3 / 2**0.5], rel=1e-6)


def test_chain_with_a_writing_rule_at_the_end_is_not_folded():
    grad, divisor, _ = into_the_kernel(
        chain(dict(max_norm=1.0), dict(type='value', clip_value=0.7))
    )
    assert grad.tolist() == pytest.approx([0.6, 0.0, 0.7], rel=1e-5)
    assert divisor is None


@pytest.mark.parametrize('clips', CHAINS, ids=lambda c: ' '.join(x['type'] for x in c))
def test_loss_scale_does_not_change_the_weights(clips):
    """With a fused optimizer under a GradScaler, rules must measure unscaled gradients."""
    config = chain(*clips)
    models = []
    for scaled in (False, True):
        torch.manual_seed(0)
        model = nn.Linear(4, 3)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
        scaler = torch.amp.GradScaler('cpu', init_scale=1024.0, enabled=scaled)
        attach(optimizer, config)
        for t in range(6):
            optimizer.zero_grad()
            x = torch.randn(5, 4, generator=torch.Generator().manual_seed(t))
            scaler.scale(model(x).square().mean()).backward()
            scaler.step(optimizer)
            scaler.update()
        models.append(model)
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_chain_never_increases_and_is_global_only_if_all_rules_are():
    assert parse_clip_grad(chain(AGC, NORM)).outer.never_increases
    assert not parse_clip_grad(chain(ADACLIP, STABILIZER)).outer.never_increases
    assert parse_clip_grad(chain(AUTO, NORM)).outer.is_global
    assert not parse_clip_grad(chain(AUTO, NORM_INF)).outer.is_global
    assert not parse_clip_grad(chain(CARRY)).outer.is_global


@pytest.mark.parametrize(
    ('clips', 'message'),
    [
        ([], 'clips must be a list of rules'),
        (dict(type='AGC'), 'clips must be a list of rules'),
        ([AGC, 'norm'], r'clips\[1\]: .*should be a dict'),
        ([AGC, dict(type='NoClip')], r"clips\[1\]: unknown type 'NoClip'.*Valid types: "),
        ([AGC, dict(type='NormClip', max_nrm=1)], r"clips\[1\]: NormClip has no key 'max_nrm'"),
        ([dict(type='NormClip')], r"clips\[0\]: NormClip needs the key 'max_norm'"),
        ([dict(max_norm=-1)], r'clips\[0\]: max_norm must be'),
        ([AGC, chain(dict(max_norm=-1))], r'clips\[1\]: clips\[0\]: max_norm must be'),
        ([dict(AGC, exclude=['bias'])], r"clips\[0\]: 'exclude' belongs to clip_grad itself"),
        ([dict(AGC, nonfinite='zero')], r"clips\[0\]: 'nonfinite' belongs to clip_grad itself"),
        ([dict(AGC, schedule=dict(type='no'))], r"clips\[0\]: schedule has no type 'no'"),
    ],
)
def test_config_errors_name_the_index_of_the_rule(clips, message):
    with pytest.raises(ClipConfigError, match=message):
        parse_clip_grad(dict(type='ChainClip', clips=clips))


def test_optimizer_refused_by_one_rule_is_refused_by_the_chain():
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(2))], lr=0.1)
    with pytest.raises(ClipConfigError, match=r'clips\[1\]: GradientStabilizer .* Adam-like'):
        attach(optimizer, chain(ADACLIP, STABILIZER))
    assert not optimizer._optimizer_step_pre_hooks


def test_each_rule_of_a_chain_follows_its_own_schedule():
    config = chain(
        dict(type='value', clip_value=1.0, schedule=dict(type='linear', start_factor=0.5, end=3)),
        dict(type='norm', max_norm=9.0, schedule=dict(type='step', step_size=2, gamma=0.1)),
    )
    for shape in ({}, dict(rules=[dict(module='Linear', **config)])):
        if shape:
            model = nn.Linear(3, 2)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            handle = attach(optimizer, dict(type='AGC', **shape), model=model)
            rule = handle.engine.config.router.routes[0].clipper
            step = optimizer.step
            for p in model.parameters():
                p.grad = torch.ones_like(p)
        else:
            run = Runner(config, SHAPES)
            rule, step = run.rule, lambda run=run: run(gradients(0))
        seen = []
        for _ in range(4):
            step()
            seen.append((rule.clips[0].clip_value, rule.clips[1].max_norm))
        assert seen == [
            (0.5, 9.0),
            (0.75, 9.0),
            (1.0, pytest.approx(0.9)),
            (1.0, pytest.approx(0.9)),
        ]


def test_state_of_another_chain_is_refused():
    run, other = Runner(chain(AUTO, NORM), SHAPES), Runner(chain(ZCLIP, NORM), SHAPES)
    run(gradients(0))
    other.handle.load_state_dict(run.handle.state_dict())
    with pytest.raises(ValueError, match=r"holds \['AutoClip', 'NormClip'\].*\['ZClip', 'Norm"):
        other(gradients(1))


def test_chain_of_stateless_rules_has_no_state():
    run = Runner(chain(AGC, NORM), SHAPES)
    run(gradients(0))
    assert run.rule.state_dict() == {}


def test_chain_of_one_rule_equals_that_rule():
    run, alone = Runner(chain(AUTO), SHAPES), Runner(AUTO, SHAPES)
    for t in range(10):
        grads = gradients(t)
        assert equal(run(grads), alone(grads))
        assert run.handle.stats() == alone.handle.stats()
