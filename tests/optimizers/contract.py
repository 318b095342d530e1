"""The contract: a skipped step is bit-identical to no step, and a large gradient is clipped.

The oracle is the bare optimizer whose ``step`` is not called, and the bare optimizer after
``torch.nn.utils.clip_grad_norm_``. Neither knows the package under test.
"""

from __future__ import annotations

import copy
import functools
import random
import types
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

import gclip_mm

from .registry import Entry, make

#: Above every gradient norm here: the steps are watched and not changed.
NEVER = dict(type='NormClip', max_norm=1e9)
MAX_NORM = 1e-2
CLIPPED = dict(type='NormClip', max_norm=MAX_NORM)
#: Finite steps of the oracle.
STEPS = 6
#: Finite steps after a skipped one.
AFTER = 3


@dataclass(frozen=True)
class Pattern:
    """Which steps are not finite: ``times`` of them after ``at`` finite ones."""

    at: int
    times: int
    value: float

    def __str__(self) -> str:
        return f'{self.value}-after-{self.at}' + (f'-x{self.times}' if self.times > 1 else '')


PATTERNS = (
    Pattern(0, 1, float('nan')),
    Pattern(2, 1, float('inf')),
    Pattern(2, 2, float('nan')),
)


# -- doors ----------------------------------------------------------------------------------------
class Bare:
    """No clipping at all: the oracle."""

    def __init__(self, model: nn.Module, optimizer: Optimizer, clip_grad: dict[str, Any]) -> None:
        self.optimizer = optimizer

    def scale(self, loss: Tensor) -> Tensor:
        return loss

    def step(self, closure: Callable[[], Tensor] | None) -> None:
        if closure is None:
            self.optimizer.step()
        else:
            self.optimizer.step(closure)


class Attach(Bare):
    def __init__(self, model: nn.Module, optimizer: Optimizer, clip_grad: dict[str, Any]) -> None:
        super().__init__(model, optimizer, clip_grad)
        self.handle = gclip_mm.attach(optimizer, clip_grad, model=model)


class AttachUnderScaler(Attach):
    def __init__(self, model: nn.Module, optimizer: Optimizer, clip_grad: dict[str, Any]) -> None:
        super().__init__(model, optimizer, clip_grad)
        # Powers of two: scaling and unscaling are exact.
        self.scaler = torch.amp.GradScaler('cpu', init_scale=1024.0, growth_interval=10**6)

    def scale(self, loss: Tensor) -> Tensor:
        return self.scaler.scale(loss)

    def step(self, closure: Callable[[], Tensor] | None) -> None:
        self.scaler.step(self.optimizer)
        self.scaler.update()


class Wrapper(Bare):
    def __init__(self, model: nn.Module, optimizer: Optimizer, clip_grad: dict[str, Any]) -> None:
        self.wrapper = gclip_mm.GClipOptimWrapper(optimizer, clip_grad=clip_grad)
        self.wrapper.initialize_count_status(model, 0, 100)

    def step(self, closure: Callable[[], Tensor] | None) -> None:
        if closure is None:
            self.wrapper.step()
        else:
            self.wrapper.step(closure=closure)


class Hook(Wrapper):
    def __init__(self, model: nn.Module, optimizer: Optimizer, clip_grad: dict[str, Any]) -> None:
        from mmengine.logging import MessageHub
        from mmengine.optim import OptimWrapper

        self.wrapper = OptimWrapper(optimizer)
        self.wrapper.initialize_count_status(model, 0, 100)
        runner = types.SimpleNamespace(
            optim_wrapper=self.wrapper,
            model=model,
            message_hub=MessageHub.get_instance('optimizers'),
        )
        gclip_mm.GClipHook(clip_grad).before_run(runner)


DOORS: dict[str, type[Bare]] = {
    'attach': Attach,
    'scaler': AttachUnderScaler,
    'wrapper': Wrapper,
    'hook': Hook,
}


# -- the loop -------------------------------------------------------------------------------------
@functools.cache
def _slopes(index: int, shapes: tuple[torch.Size, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(100 + index)
    return [torch.randn(shape, generator=generator) for shape in shapes]


class Loop:
    """A training loop that can put a non-finite number into one gradient.

    Args:
        entry: the optimizer.
        door: how it is clipped.
        clip_grad: the rule.
        edit: called with the parameters when the gradients of a step are there. What SAM reads
            before it calls its closure is not among them.
    """

    def __init__(
        self,
        entry: Entry,
        door: type[Bare] = Bare,
        clip_grad: dict[str, Any] = NEVER,
        edit: Callable[[list[nn.Parameter]], None] | None = None,
    ) -> None:
        self.entry = entry
        self.model, self.optimizer = make(entry)
        self.door = door(self.model, self.optimizer, clip_grad)
        self.edit = edit

    def step(self, index: int, value: float | None = None) -> None:
        """Take step ``index``; with a ``value``, that is the gradient of the first weight."""
        # Optimizers that draw random numbers draw the same ones, whatever went before.
        torch.manual_seed(index)
        random.seed(index)
        np.random.seed(index)
        params = list(self.model.parameters())
        slopes = _slopes(index, tuple(p.shape for p in params))
        if value is not None:
            slopes = [slope.clone() for slope in slopes]
            slopes[0][0, 0] = value

        def backward() -> Tensor:
            # Not by the optimizer's zero_grad, which patches its step the first time.
            for p in params:
                p.grad = None
            with torch.enable_grad():
                loss = self.model(slopes)
                self.door.scale(loss).backward(create_graph=self.entry.create_graph)
            return loss

        def closure() -> Tensor:
            loss = backward()
            if self.edit is not None:
                self.edit(params)
            return loss

        if self.entry.before:
            backward()
        if self.entry.closure:
            self.door.step(closure)
        else:
            closure()
            self.door.step(None)

    def snapshot(self) -> dict[str, Any]:
        """Copies of the parameters and of the optimizer's whole state."""
        return dict(
            parameters=[p.detach().clone() for p in self.model.parameters()],
            optimizer=copy.deepcopy(self.optimizer.state_dict()),
        )


def difference(a: Any, b: Any, path: str = '') -> str:
    """The path to the first difference of two nested values, tensors by their bits; '' if none."""
    if type(a) is not type(b):
        return f'{path}: {type(a).__name__} and {type(b).__name__}'
    if isinstance(a, Tensor):
        if a.dtype != b.dtype or a.shape != b.shape:
            return f'{path}: {a.dtype} {tuple(a.shape)} and {b.dtype} {tuple(b.shape)}'
        same = torch.equal(_bits(a), _bits(b))
        return '' if same else f'{path}: {a.flatten()[:2].tolist()} and {b.flatten()[:2].tolist()}'
    if isinstance(a, Mapping):
        if list(a) != list(b):
            return f'{path}: keys {list(a)} and {list(b)}'
        parts = [(f'{path}/{key}', a[key], b[key]) for key in a]
    elif isinstance(a, (list, tuple, deque)):
        if len(a) != len(b):
            return f'{path}: {len(a)} and {len(b)} items'
        parts = [(f'{path}/{i}', x, y) for i, (x, y) in enumerate(zip(a, b, strict=True))]
    elif isinstance(a, (bool, int, str, type(None), torch.dtype, torch.device)):
        return '' if a == b else f'{path}: {a!r} and {b!r}'
    elif isinstance(a, float):
        return '' if a == b or (a != a and b != b) else f'{path}: {a!r} and {b!r}'
    elif isinstance(a, np.ndarray):
        return '' if a.tobytes() == b.tobytes() else f'{path}: arrays'
    elif isinstance(a, torch.Generator):
        return difference(a.get_state(), b.get_state(), f'{path} (generator)')
    elif hasattr(a, '__dict__') and not callable(a):
        return difference(vars(a), vars(b), path)
    else:
        return ''
    return next((found for part in parts if (found := difference(part[1], part[2], part[0]))), '')


def _bits(tensor: Tensor) -> Tensor:
    if tensor.layout is not torch.strided:
        tensor = tensor.to_dense()
    return tensor.detach().contiguous().flatten().view(torch.uint8)


# -- the oracles ----------------------------------------------------------------------------------
@functools.cache
def finite_run(entry: Entry) -> list[dict[str, Any]] | str:
    """Snapshots after 0, 1, ... finite steps of the bare optimizer; a reason if it cannot run."""
    try:
        loop = Loop(entry)
        snapshots = [loop.snapshot()]
        for index in range(STEPS):
            loop.step(index)
            snapshots.append(loop.snapshot())
    except Exception as error:
        return f'{type(error).__name__}: {str(error).strip().splitlines()[0][:120]}'
    again = Loop(entry)
    for index in range(STEPS):
        again.step(index)
    if found := difference(snapshots[-1], again.snapshot()):
        return f'two runs of it differ at {found}'
    return snapshots


@functools.cache
def clipped_run(entry: Entry) -> list[list[Tensor]]:
    """The parameters after each step whose gradients torch has clipped."""

    def edit(params: list[nn.Parameter]) -> None:
        torch.nn.utils.clip_grad_norm_(params, MAX_NORM)

    loop = Loop(entry, edit=edit)
    found = []
    for index in range(AFTER + 1):
        loop.step(index)
        found.append(loop.snapshot()['parameters'])
    return found


# -- the checks -----------------------------------------------------------------------------------
def can_run(entry: Entry, door: str) -> str:
    """'' or why the optimizer does not go through a door."""
    if entry.own_gradients:
        return 'updates its parameters in backward, outside step'
    if door == 'scaler' and entry.closure:
        return 'GradScaler takes no closure'
    if door == 'scaler' and entry.create_graph:
        return 'its Hessian would be of the scaled loss'
    unusable = finite_run(entry)
    return unusable if isinstance(unusable, str) else ''


def start(entry: Entry, door: str, clip_grad: dict[str, Any]) -> Loop | str:
    """The loop, or the reason why the optimizer is refused."""
    try:
        return Loop(entry, DOORS[door], clip_grad)
    except gclip_mm.ClipConfigError as error:
        return str(error)


def check_skip(entry: Entry, door: str, pattern: Pattern) -> str:
    """'' if skipped steps leave no trace; else where they do."""
    oracle = finite_run(entry)
    assert not isinstance(oracle, str)
    loop = start(entry, door, NEVER)
    if isinstance(loop, str):
        return f'refused: {loop}'
    for index in range(pattern.at):
        loop.step(index)
    if found := difference(oracle[pattern.at], loop.snapshot()):
        return f'before any: {found}'
    for _ in range(pattern.times):
        # The gradients of another step, and its random numbers.
        loop.step(50, value=pattern.value)
        if found := difference(oracle[pattern.at], loop.snapshot()):
            return f'skipped: {found}'
    for index in range(pattern.at, pattern.at + AFTER):
        loop.step(index)
        if found := difference(oracle[index + 1], loop.snapshot()):
            return f'{index + 1 - pattern.at} steps later: {found}'
    return ''


def check_clip(entry: Entry, door: str) -> str:
    """'' if every step, the first one too, is clipped as torch clips it; else where it is not."""
    loop = start(entry, door, CLIPPED)
    if isinstance(loop, str):
        return f'refused: {loop}'
    for index, wanted in enumerate(clipped_run(entry)):
        loop.step(index)
        got = loop.snapshot()['parameters']
        for name, x, y in zip(('weight', 'bias'), wanted, got, strict=False):
            close = (
                torch.allclose(x, y, rtol=entry.tolerance, atol=entry.tolerance)
                if entry.tolerance
                else torch.equal(x, y)
            )
            if not close:
                off = float((x - y).abs().max() / x.abs().max())
                return f'step {index + 1}: {name} differs by {off:.1e} of its largest'
    return ''


def is_blind(entry: Entry) -> bool:
    """Whether its first steps are the same clipped and unclipped, as with an optimizer of signs."""
    oracle = finite_run(entry)
    last = clipped_run(entry)[-1]
    bare = oracle[AFTER + 1]['parameters']
    return all(torch.allclose(x, y, rtol=1e-6) for x, y in zip(bare, last, strict=True))
