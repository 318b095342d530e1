"""Checkpoints written by commit 55e41c2 load, and training continues bit-identically.

tools/dev/write_old_checkpoints.py wrote the files on the torch path. The script also holds the
model and the training loop that both sides share.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from gclip_mm.clipping import attach
from tools.dev.write_old_checkpoints import (
    CASES,
    FOLDER,
    OPTIMIZERS,
    SAVED,
    STEPS,
    WRAPPER_CASES,
    Net,
    load,
    make_net,
    make_optimizer,
    model_of,
    probe,
    takes,
    train,
    train_wrapper,
)

RUNS = [(case, name) for case in CASES for name in OPTIMIZERS if takes(case, name)]
WRAPPER_RUNS = [(case, name) for case in WRAPPER_CASES for name in OPTIMIZERS]


@pytest.fixture(scope='module')
def gradients() -> Tensor:
    return load(FOLDER / 'gradients.pt.gz')


@pytest.fixture(scope='module')
def differing_operations(gradients) -> list[str]:
    """Plain torch operations whose results here are not bit-identical to the stored ones."""
    expected, actual = load(FOLDER / 'probe.pt.gz')['results'], probe(gradients)
    return [name for name, result in expected.items() if not torch.equal(result, actual[name])]


@pytest.fixture
def same_bits_expected(differing_operations, without_host_kernels) -> None:
    """Take the path that wrote the files; skip if torch itself is not bit-identical here."""
    if differing_operations:
        written = load(FOLDER / 'probe.pt.gz')['torch']
        pytest.skip(
            f'plain torch {torch.__version__} computes other bits on this platform than torch '
            f'{written} where the files were written: {", ".join(differing_operations)}'
        )


def mismatches(
    expected: Any,
    actual: Any,
    where: str,
    same: Callable[[Tensor, Tensor], bool] = torch.equal,
) -> list[str]:
    """Paths at which two nested states differ in type, keys, dtype, shape or values."""
    if isinstance(expected, Tensor):
        equal = (
            isinstance(actual, Tensor)
            and (expected.dtype, expected.shape) == (actual.dtype, actual.shape)
            and same(expected, actual)
        )
    elif isinstance(expected, dict | list | tuple):
        keys = list(expected) if isinstance(expected, dict) else range(len(expected))
        equal = type(expected) is type(actual) and len(expected) == len(actual)
        equal = equal and (not isinstance(expected, dict) or expected.keys() == actual.keys())
        if equal:
            pairs = [(expected[key], actual[key], f'{where}[{key!r}]') for key in keys]
            return [line for pair in pairs for line in mismatches(*pair, same)]
    else:
        equal = type(expected) is type(actual) and expected == actual
    return [] if equal else [f'{where}: expected {expected!r}, got {actual!r}']


def read_run(case: str, optimizer_name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The ``clip_grad`` of a case and its run with an optimizer, as the file holds them."""
    file = load(FOLDER / f'{case}.pt.gz')
    return file['clip_grad'], file['runs'][optimizer_name]


def resumed(case: str, optimizer_name: str) -> tuple[Net, Any, Any, dict[str, Any]]:
    """The model, the optimizer and the handle of a resumed run, and the content of its file."""
    clip_grad, run = read_run(case, optimizer_name)
    net = make_net()
    optimizer = make_optimizer(optimizer_name, net)
    handle = attach(optimizer, clip_grad, model=model_of(case, net))
    net.load_state_dict(run['model'])
    optimizer.load_state_dict(run['optimizer'])
    handle.load_state_dict(run['clip'])
    return net, optimizer, handle, run


@pytest.mark.parametrize(('case', 'optimizer_name'), RUNS)
def test_old_checkpoint_continues_bit_identically(
    case, optimizer_name, gradients, same_bits_expected
):
    net, optimizer, handle, run = resumed(case, optimizer_name)
    train(net, optimizer, gradients, SAVED, STEPS)
    assert not mismatches(run['model_after'], net.state_dict(), 'model')
    assert not mismatches(run['clip_after'], handle.state_dict(), 'clip')


@pytest.mark.parametrize(('case', 'optimizer_name'), RUNS)
def test_old_checkpoint_continues_within_rounding(case, optimizer_name, gradients, either_path):
    net, optimizer, handle, run = resumed(case, optimizer_name)
    train(net, optimizer, gradients, SAVED, STEPS)
    assert not mismatches(run['model_after'], net.state_dict(), 'model', torch.allclose)
    assert not mismatches(run['clip_after'], handle.state_dict(), 'clip', torch.allclose)


@pytest.mark.parametrize(('case', 'optimizer_name'), RUNS)
def test_loaded_state_is_saved_unchanged(case, optimizer_name):
    _, _, handle, run = resumed(case, optimizer_name)
    assert any(route['state'] for route in run['clip']['routes'])
    assert not mismatches(run['clip'], handle.state_dict(), 'clip')


@pytest.mark.parametrize(('case', 'optimizer_name'), WRAPPER_RUNS)
def test_old_wrapper_checkpoint_continues_bit_identically(
    case, optimizer_name, gradients, same_bits_expected, request
):
    """The state is under ``gclip`` in the ``state_dict`` of MMEngine's wrapper."""
    pytest.importorskip('mmengine')
    from mmengine.logging import MessageHub

    from gclip_mm.engine import GClipOptimWrapper

    MessageHub.get_instance(request.node.nodeid)
    clip_grad, run = read_run(case, optimizer_name)
    net = make_net()
    wrapper = GClipOptimWrapper(make_optimizer(optimizer_name, net), clip_grad=clip_grad)
    net.load_state_dict(run['model'])
    wrapper.load_state_dict(run['optimizer'])
    train_wrapper(net, wrapper, gradients, SAVED, STEPS)
    assert not mismatches(run['model_after'], net.state_dict(), 'model')
    assert not mismatches(run['clip_after'], wrapper.state_dict()['gclip'], 'clip')


@pytest.mark.parametrize(('case', 'optimizer_name'), WRAPPER_RUNS)
def test_old_wrapper_checkpoint_continues_through_attach(
    case, optimizer_name, gradients, same_bits_expected
):
    clip_grad, run = read_run(case, optimizer_name)
    net = make_net()
    optimizer = make_optimizer(optimizer_name, net)
    handle = attach(optimizer, clip_grad, model=net)
    net.load_state_dict(run['model'])
    optimizer.load_state_dict({k: v for k, v in run['optimizer'].items() if k != 'gclip'})
    handle.load_state_dict(run['optimizer']['gclip'])
    train(net, optimizer, gradients, SAVED, STEPS)
    assert not mismatches(run['model_after'], net.state_dict(), 'model')
    assert not mismatches(run['clip_after'], handle.state_dict(), 'clip')


def test_each_file_is_read_by_a_test():
    names = {path.name for path in FOLDER.iterdir()}
    others = {'gradients.pt.gz', 'probe.pt.gz'}
    assert names == others | {f'{case}.pt.gz' for case in [*CASES, *WRAPPER_CASES]}
