"""Parameter groups that change while training: per-parameter state follows its parameter."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from gclip_mm import ClipConfigError, attach
from tests.clipping.cases import CASES, Probe

SHAPES = [(3, 2), (4,), (2, 2, 2), (5,)]
SCALES = [1e-3, 1e3, 1.0, 1e-1]
STEPS = 7
#: Cases that clip each tensor independently of the others.
APART = [
    'AdaClip short',
    'GradientStabilizer',
    'ParamNormClip carry',
    'SpikeClip tight',
    'ValueClip carry',
]


def gradient(step: int, i: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(100 * step + i)
    return torch.randn(SHAPES[i], generator=generator) * SCALES[i] * (4 if step == 5 else 1)


def run(config, changes=None, begin=(0, 1, 2, 3)):
    """Clipped gradient of each parameter in each step; ``changes[step]`` runs before that step."""
    params = [nn.Parameter(torch.ones(shape)) for shape in SHAPES]
    optimizer = Probe([dict(params=[params[i]]) for i in begin])
    engine = attach(optimizer, config).engine
    seen = []
    for step in range(STEPS):
        if changes is not None and step in changes:
            changes[step](optimizer, params)
        for i, param in enumerate(params):
            param.grad = gradient(step, i)
        optimizer.step()
        here = [p for group in optimizer.param_groups for p in group['params']]
        seen.append({
            i: grad
            for i, param in enumerate(params)
            for other, grad in zip(here, optimizer.seen, strict=True)
            if other is param
        })  # fmt: skip
    return seen, engine


def drop(i):
    def change(optimizer, params):
        groups = optimizer.param_groups
        groups[:] = [group for group in groups if group['params'][0] is not params[i]]

    return change


def add(i):
    return lambda optimizer, params: optimizer.add_param_group(dict(params=[params[i]]))


def assert_same(found, expected, params):
    for step, (some, others) in enumerate(zip(found, expected, strict=True)):
        for i in params:
            if i in some and i in others:
                torch.testing.assert_close(some[i], others[i], msg=lambda m, s=step: f'{s}: {m}')


@pytest.mark.parametrize('case', CASES)
def test_reordering_groups_changes_no_result(case):
    expected, _ = run(CASES[case])
    turned, engine = run(CASES[case], {4: lambda o, _: o.param_groups.reverse()})
    assert_same(turned, expected, range(len(SHAPES)))
    names = [info.name for info in engine.book.infos]
    assert names == [f'param_{i}' for i in range(len(SHAPES))]
    # The state saved now loads in a run with the groups in their new order.
    _, other = run(CASES[case], begin=range(len(SHAPES) - 1, -1, -1))
    other.load_state_dict(engine.state_dict())


@pytest.mark.parametrize('case', CASES)
def test_rules_handle_groups_that_are_removed_and_added(case):
    """No rule fails, and its state has one entry per parameter."""
    changes = {2: drop(0), 3: add(0), 4: drop(2), 6: add(2)}
    seen, engine = run(CASES[case], changes)
    assert [sorted(step) for step in seen] == [
        *[[0, 1, 2, 3]] * 2, [1, 2, 3], [0, 1, 2, 3], *[[0, 1, 3]] * 2, [0, 1, 2, 3]
    ]  # fmt: skip
    engine.load_state_dict(engine.state_dict())


@pytest.mark.parametrize('case', APART)
def test_kept_parameters_keep_their_state_and_added_ones_start_fresh(case):
    expected, _ = run(CASES[case])
    gone, _ = run(CASES[case], {4: drop(0)})
    assert_same(gone, expected, [1, 2, 3])
    # An added parameter is treated as one that has had no gradient so far.
    late, _ = run(CASES[case], {4: add(1)}, begin=[0, 2, 3])
    assert_same(late, expected, [0, 2, 3])
    fresh, _ = run(CASES[case], {0: drop(1), 4: add(1)})
    assert_same(late, fresh, range(4))
    back, _ = run(CASES[case], {3: drop(1), 4: add(1)})
    assert_same(back[4:], fresh[4:], [1])


@pytest.mark.parametrize('case', APART)
def test_state_of_each_route_follows_its_parameters(case):
    def routed(order):
        model = nn.ParameterDict({f'p{i}': torch.ones(shape) for i, shape in enumerate(SHAPES)})
        params = list(model.values())
        optimizer = Probe([dict(params=[p]) for p in params])
        rules = [dict(match='p[02]$', type='AdaGC', warmup_steps=2)]
        attach(optimizer, dict(CASES[case], rules=rules), model=model)
        seen = []
        for step in range(STEPS):
            if step == 4:
                optimizer.param_groups[:] = [optimizer.param_groups[i] for i in order]
            for i, param in enumerate(params):
                param.grad = gradient(step, i)
            optimizer.step()
            here = [id(p) for group in optimizer.param_groups for p in group['params']]
            seen.append({i: optimizer.seen[here.index(id(p))] for i, p in enumerate(params)})
        return seen

    assert_same(routed([3, 1, 2, 0]), routed([0, 1, 2, 3]), range(4))


def test_pattern_whose_parameters_were_removed_is_accepted():
    model = nn.ModuleDict(dict(backbone=nn.Linear(2, 2), head=nn.Linear(2, 2)))
    optimizer = Probe([dict(params=list(part.parameters())) for part in model.values()])
    handle = attach(optimizer, dict(type='NormClip', max_norm=1, exclude=['^head']), model=model)
    del optimizer.param_groups[1]
    for p in model.parameters():
        p.grad = torch.full_like(p, 10.0)
    optimizer.step()
    assert handle.stats()['grad_norm_post'] == pytest.approx(1, rel=1e-5)
    # Binding the same model again and copying the engine do not validate the pattern again.
    handle.engine.bind(model)
    copy.deepcopy(handle.engine)
    # Binding another model does: the pattern may be misspelt for it.
    with pytest.raises(ClipConfigError, match="'\\^head' matches no parameter"):
        handle.engine.bind(nn.ModuleDict(dict(model)))
