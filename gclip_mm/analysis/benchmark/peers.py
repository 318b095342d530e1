"""The peers: other implementations of clipping and stepping, each as its users run it.

A peer is made once for a set of parameters. It returns the function that is timed: clip, then step.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from importlib.util import find_spec

import numpy as np
import torch
from torch import Tensor, nn

from ...clipping.step.buffers import BufferKeeper

Step = Callable[[], object]
VALUE = 0.1  # the clip_value of the recipe, for ValueClip and its peer
LR = 1e-9  # small, because the same gradients are applied many times


def gradients(params: list[nn.Parameter]) -> list[Tensor]:
    """The gradients of the parameters."""
    return [p.grad.detach() for p in params if p.grad is not None]


def sgd(params: list[nn.Parameter], fused: bool) -> torch.optim.Optimizer:
    """The SGD of a detector, fused or as PyTorch makes it by default."""
    return torch.optim.SGD(
        params, lr=LR, momentum=0.9, weight_decay=1e-4, fused=True if fused else None
    )


def fused_step(params: list[nn.Parameter], model: nn.Module) -> Step:
    """No clipping at all."""
    return sgd(params, fused=True).step


def adamw_step(params: list[nn.Parameter], model: nn.Module) -> Step:
    """No clipping: the base of a rule that rejects SGD."""
    return torch.optim.AdamW(params, lr=LR, fused=True).step


def default_step(params: list[nn.Parameter], model: nn.Module) -> Step:
    """No clipping, and the optimizer of a stock config."""
    return sgd(params, fused=False).step


def torch_norm(params: list[nn.Parameter], model: nn.Module) -> Step:
    """``clip_grad_norm_`` and a fused step."""
    optimizer = sgd(params, fused=True)

    def step() -> None:
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()

    return step


def torch_value(params: list[nn.Parameter], model: nn.Module) -> Step:
    """``clip_grad_value_`` and a fused step."""
    optimizer = sgd(params, fused=True)

    def step() -> None:
        torch.nn.utils.clip_grad_value_(params, VALUE)
        optimizer.step()

    return step


def mmengine_norm(params: list[nn.Parameter], model: nn.Module) -> Step:
    """The step of MMEngine's ``OptimWrapper`` with ``clip_grad=dict(max_norm=...)``."""
    from mmengine.logging import MessageHub
    from mmengine.optim import OptimWrapper

    MessageHub.get_instance('benchmark')
    wrapper = OptimWrapper(sgd(params, fused=False), clip_grad=dict(max_norm=1.0))
    return wrapper.step


def agc_per_parameter(params: list[nn.Parameter], model: nn.Module) -> Step:
    """AGC as in timm: a loop over parameters, with temporaries of the size of each.

    Uses timm if it is installed, and otherwise the same operations in the same order.
    """
    optimizer = sgd(params, fused=True)
    if find_spec('timm') is not None:
        from timm.utils.agc import adaptive_clip_grad

        def timm_step() -> None:
            adaptive_clip_grad(params, clip_factor=0.01, eps=1e-3)
            optimizer.step()

        return timm_step

    def unit_norm(x: Tensor) -> Tensor:
        if x.ndim <= 1:
            return x.norm(2.0)
        return x.norm(2.0, dim=tuple(range(1, x.ndim)), keepdim=True)

    def step() -> None:
        for p in params:
            if p.grad is None:
                continue
            weight, grad = p.detach(), p.grad.detach()
            most = unit_norm(weight).clamp_(min=1e-3).mul_(0.01)
            norm = unit_norm(grad)
            clipped = grad * (most / norm.clamp(min=1e-6))
            p.grad.detach().copy_(torch.where(norm < most, grad, clipped))
        optimizer.step()

    return step


def autoclip_loop(params: list[nn.Parameter], model: nn.Module) -> Step:
    """AutoClip as listed in its paper: a Python list of norms, one host read for each tensor."""
    optimizer = sgd(params, fused=True)
    history: deque[float] = deque(maxlen=1000)

    def step() -> None:
        norm = sum(grad.norm(2).item() ** 2 for grad in gradients(params)) ** 0.5
        history.append(norm)
        torch.nn.utils.clip_grad_norm_(params, np.percentile(history, 10))
        optimizer.step()

    return step


def zclip_loop(params: list[nn.Parameter], model: nn.Module) -> Step:
    """ZClip as listed in its paper: moments on the host, one host read for each tensor."""
    optimizer = sgd(params, fused=True)
    state = {'mean': 0.0, 'var': 1.0}

    def step() -> None:
        norm = sum(grad.norm(2).item() ** 2 for grad in gradients(params)) ** 0.5
        deviation = state['var'] ** 0.5
        z = (norm - state['mean']) / (deviation + 1e-6)
        target = norm if z <= 2.5 else state['mean'] + 2.5**2 / z * deviation
        state['mean'] = 0.97 * state['mean'] + 0.03 * target
        state['var'] = 0.97 * state['var'] + 0.03 * (target - state['mean']) ** 2
        torch.nn.utils.clip_grad_norm_(params, min(target, 1.0))
        optimizer.step()

    return step


def foreach_norm(params: list[nn.Parameter], model: nn.Module) -> Step:
    """``torch._foreach_norm`` and a fused step: the cost of the norms alone."""
    optimizer = sgd(params, fused=True)

    def step() -> None:
        torch._foreach_norm(gradients(params))
        optimizer.step()

    return step


def buffers_kept(params: list[nn.Parameter], model: nn.Module) -> Step:
    """A fused step, and the copy of the model's buffers that ``nonfinite='skip'`` makes.

    The rules have that copy in their times too.
    """
    optimizer = sgd(params, fused=True)
    keeper = BufferKeeper()
    keeper.watch(model)
    on_gpu = params[0].device.type == 'cuda'
    # On a GPU only the device knows whether the step is skipped.
    skipped = torch.zeros((), device=params[0].device) if on_gpu else False

    def step() -> None:
        optimizer.step()
        keeper.settle(skipped)

    return step


PEERS: dict[str, Callable[[list[nn.Parameter], nn.Module], Step]] = {
    'step only (fused SGD)': fused_step,
    'step only (default SGD)': default_step,
    'step only (fused AdamW)': adamw_step,
    'MMEngine OptimWrapper norm': mmengine_norm,
    'torch clip_grad_norm_': torch_norm,
    'torch clip_grad_value_': torch_value,
    'torch _foreach_norm only': foreach_norm,
    'buffers': buffers_kept,
    'AGC as timm': agc_per_parameter,
    'AutoClip reference loop': autoclip_loop,
    'ZClip reference loop': zclip_loop,
}


def optax_clip(params: list[nn.Parameter], model: nn.Module) -> Step:
    """``optax.clip_by_global_norm`` compiled by JAX, without a step."""
    import jax
    import optax

    clip = optax.clip_by_global_norm(1.0)
    grads = [jax.numpy.asarray(grad.numpy()) for grad in gradients(params)]
    state = clip.init(grads)
    update = jax.jit(lambda g, s: clip.update(g, s))
    return lambda: jax.block_until_ready(update(grads, state)[0])


if find_spec('optax') is not None and find_spec('jax') is not None:
    PEERS['optax clip_by_global_norm (clip only)'] = optax_clip
