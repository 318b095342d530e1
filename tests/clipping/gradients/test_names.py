"""Names of parameters do not depend on wrappers; a shared parameter has several names."""

from __future__ import annotations

import functools

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from gclip_mm import ClipConfigError, attach
from gclip_mm.clipping.gradients.names import describe_params

compiled = functools.partial(torch.compile, backend='eager')


@pytest.fixture(autouse=True, scope='module')
def one_process():
    if dist.is_initialized():
        pytest.skip('this process is in a group already')
    dist.init_process_group('gloo', store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


class Head(nn.Module):
    """A module with a submodule named ``module``, like the one in a wrapper."""

    def __init__(self):
        super().__init__()
        self.module = nn.Linear(3, 2)


class Gan(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.generator = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 3))
        self.head = Head()


NAMES = [
    'generator.0.weight',
    'generator.0.bias',
    'generator.1.weight',
    'generator.1.bias',
    'head.module.weight',
    'head.module.bias',
]


def wrap_member(wrap):
    def change(model):
        model.generator = wrap(model.generator)
        return model

    return change


def separate(model):
    mmengine_model = pytest.importorskip('mmengine.model')
    return mmengine_model.MMSeparateDistributedDataParallel(model)


def averaged(model):
    mmengine_model = pytest.importorskip('mmengine.model')
    return mmengine_model.ExponentialMovingAverage(model)


FSDP = functools.partial(
    FullyShardedDataParallel, device_id=torch.device('cpu'), use_orig_params=True
)
#: Ways to wrap a model, some of which copy the parameters.
WRAPS = {
    'DataParallel': nn.DataParallel,
    'DDP': DistributedDataParallel,
    'separate DDP': separate,
    'compile': compiled,
    'compile of DDP': lambda model: compiled(DistributedDataParallel(model)),
    'DDP of compile': lambda model: DistributedDataParallel(compiled(model)),
    'AveragedModel': AveragedModel,
    'EMA of DDP': lambda model: averaged(DistributedDataParallel(model)),
    'EMA': averaged,
    'DDP member': wrap_member(DistributedDataParallel),
    'compiled DDP member': wrap_member(lambda part: compiled(DistributedDataParallel(part))),
    'checkpointed member': wrap_member(checkpoint_wrapper),
    'FSDP': FSDP,
    'FSDP member': wrap_member(FSDP),
    'FSDP of checkpointed member': lambda model: FSDP(wrap_member(checkpoint_wrapper)(model)),
}
each_wrap = pytest.mark.parametrize('wrap', WRAPS.values(), ids=WRAPS)
CONFIG = dict(
    type='AdaGC', exclude=[r'^head\.module\.bias$'], rules=[dict(match=r'^generator\.0\.', rel=1.2)]
)


def start(model):
    """Attach clipping to a model and take one step."""
    params = list(model.parameters())
    optimizer = torch.optim.SGD(params, lr=0.0)
    handle = attach(optimizer, CONFIG, model=model)
    for k, param in enumerate(params):
        param.grad = torch.full_like(param, k + 1.0)
    optimizer.step()
    return handle


@each_wrap
def test_wrappers_do_not_change_names(wrap):
    model = wrap(Gan())
    assert [info.name for info in describe_params(model.parameters(), model)] == NAMES


@each_wrap
def test_routes_match_and_state_loads_with_and_without_wrappers(wrap):
    plain, wrapped = start(Gan()).engine, start(wrap(Gan())).engine
    assert wrapped.book.assigned == plain.book.assigned == [1, 1, 2, 2, 2, 0]
    state = plain.state_dict()
    assert [route['params'] for route in state['routes']] == [NAMES[5:], NAMES[:2], NAMES[2:5]]
    wrapped.load_state_dict(state)
    plain.load_state_dict(wrapped.state_dict())


def test_state_with_wrapper_parts_in_its_names_loads():
    """Earlier versions wrote such names under MMSeparateDistributedDataParallel."""
    engine = start(Gan()).engine
    state = engine.state_dict()
    for route in state['routes']:
        route['params'] = [n.replace('generator', 'generator.module') for n in route['params']]
    engine.load_state_dict(state)
    state['routes'][1]['params'][0] = 'discriminator.module.0.weight'
    with pytest.raises(ValueError, match='of other parameters'):
        engine.load_state_dict(state)


class Tied(nn.Module):
    """A language model whose output layer shares the weight of its embedding."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(5, 3)
        self.body = nn.Linear(3, 3)
        self.output = nn.Linear(3, 5, bias=False)
        self.output.weight = self.embedding.weight


@pytest.mark.parametrize(
    'condition',
    ['^embedding', r'^output\.weight', dict(module='Embedding'), dict(module='Linear')],
    ids=str,
)
def test_tied_weight_matches_by_each_of_its_names_and_modules(condition):
    model = Tied()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    attach(optimizer, dict(max_norm=0.1, exclude=[condition]), model=model)
    for param in model.parameters():
        param.grad = torch.ones_like(param)
    optimizer.step()
    assert (model.embedding.weight.grad == 1).all()


def test_module_used_twice_has_both_names_in_order():
    shared = nn.Linear(2, 2)
    model = nn.ModuleDict(dict(first=shared, second=nn.Sequential(shared)))
    infos = describe_params(model.parameters(), model)
    assert [info.names for info in infos] == [
        ['first.weight', 'second.0.weight'],
        ['first.bias', 'second.0.bias'],
    ]
    with pytest.raises(ClipConfigError, match=r"matches no parameter by name.*'second\.0"):
        attach(
            torch.optim.SGD(model.parameters(), lr=0.1),
            dict(max_norm=1, exclude=['second.1']),
            model=model,
        )


def test_module_that_contains_itself_is_visited_once():
    model = nn.Sequential(nn.Linear(2, 2))
    model.add_module('again', model)
    infos = describe_params(model.parameters(), model)
    assert [info.names for info in infos] == [['0.weight'], ['0.bias']]
