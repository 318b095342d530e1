"""The cost model against quantities that can be counted without a GPU."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

from gclip_mm import CLIPPERS
from gclip_mm.analysis.benchmark import cost_model as tool
from gclip_mm.cli import cost
from tests.clipping.cases import Runner, example
from tests.distributed.launching import ROOT
from tests.distributed.worker import Net

#: The first test that needs the results runs all processes, which is slow on a busy machine.
pytestmark = pytest.mark.timeout(900)

DOC = (ROOT / 'docs' / 'scaling.md').read_text()


def model_of(net: nn.Module):
    params = list(net.parameters())
    vectors = sum(p.ndim < 2 for p in params)
    return tool.Model(sum(p.numel() for p in params), len(params) - vectors, vectors)


def test_documented_table_is_the_output_of_the_command(capsys):
    cost.main([])
    assert capsys.readouterr().out.strip() in DOC


def test_documented_assumptions_are_the_defaults():
    stated = dict(re.findall(r'^\| `--([\w-]+)` \| ([\d.e+-]+) \|', DOC, re.M))
    assert {key.replace('-', '_'): float(value) for key, value in stated.items()} == {
        key: pytest.approx(float(value)) for key, value in tool.Hardware()._asdict().items()
    }


@pytest.mark.parametrize('name', CLIPPERS)
def test_messages_equal_the_counted_all_reduces(name, engine_results):
    """The model gives the maximum over steps; a step that clips less may send less."""
    optimizer = 'adamw' if name == 'GradientStabilizer' else 'sgd'
    steps = engine_results[2][f'fsdp2 {name} {optimizer}']['collectives']
    expected = list(tool.cost(name, model_of(Net()), 2).messages)
    if name in ('AGC', 'Auto'):
        # Sharding also splits the four filters of the transposed convolution and the one row of
        # `scale`, so the first message has these units in addition, and the others lack two rows.
        first, *others = expected
        rows = [message // model_of(Net()).matrices for message in others]
        expected = [
            first + 2 * 8 * (4 + 1),
            *(message - 2 * row for message, row in zip(others, rows, strict=True)),
        ]
    assert max(steps[1:], key=len) == expected
    if name == 'BlockRMSClip':
        # The first step also exchanges the number of elements of each tensor.
        assert steps[0][-len(expected) :] == expected
    else:
        assert steps[0] == expected[: len(steps[0])]


@pytest.mark.parametrize('name', CLIPPERS)
def test_state_size_equals_that_of_the_rule(name):
    shapes = [(64, 32), (64,), (32, 64), (32,)]
    run = Runner(example(name), shapes)
    for step in range(2):
        generator = torch.Generator().manual_seed(step)
        run([torch.randn(shape, generator=generator) for shape in shapes])

    def size(value) -> int:
        if isinstance(value, torch.Tensor):
            return value.numel() * value.element_size()
        items = value.values() if isinstance(value, dict) else value
        return sum(map(size, items)) if isinstance(value, dict | list) else 0

    model = tool.Model(sum(p.numel() for p in run.params), 2, 2)
    kept = size(run.rule.state_dict())
    # The model leaves out one or two step counts.
    assert kept == pytest.approx(tool.cost(name, model, 1).state, abs=32)


def test_every_rule_has_a_cost_and_unknown_rules_raise():
    model = tool.transformer(1)
    for name in CLIPPERS:
        assert tool.seconds(name, model, 64, tool.Hardware()) > 0
    with pytest.raises(KeyError, match='NoSuchRule'):
        tool.cost('NoSuchRule', model, 1)


def test_models_have_about_their_nominal_number_of_weights():
    for billions in tool.MODELS:
        assert tool.transformer(billions).weights / 1e9 == pytest.approx(billions, rel=0.2)


def test_more_gpus_read_less_memory_and_exchange_for_longer():
    model, hardware = tool.transformer(13), tool.Hardware()
    one, many = tool.cost('NormClip', model, 8), tool.cost('NormClip', model, 1024)
    assert one.read == pytest.approx(128 * many.read) and one.messages == many.messages
    near, far = (tool.exchange_seconds(4096, gpus, hardware) for gpus in (8, 1024))
    # Computed by hand: 2 * 3 hops of 3 us, plus 2 * 7 hops of 10 us at another bandwidth.
    assert near == pytest.approx(18e-6 + 8192 / 4.5e11)
    assert far == pytest.approx(18e-6 + 140e-6 + 8192 / 5e10)


@pytest.mark.parametrize('wrong', [['--gpus', '0'], ['--hbm', '0'], ['--sizes', '3']])
def test_invalid_arguments_exit(wrong):
    with pytest.raises(SystemExit):
        cost.main(wrong)
