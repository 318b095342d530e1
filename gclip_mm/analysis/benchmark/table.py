"""Times every rule and its peers in turn, on one set of parameters."""

from __future__ import annotations

import platform
import statistics
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from mmengine.utils import ProgressBar
from torch import nn

from ...clipping import CLIPPERS, attach
from ...clipping.attach import ClipHandle
from ...compat import foreach_copy_
from .gradients import build_model, many_tensors, model_gradients, random_gradients
from .measure import host_reads, kernel_launches, peak_extra_bytes, ratio, read_once, time_in_turn
from .peers import LR, PEERS, VALUE, sgd

STOCK, TORCH, OURS = 'MMEngine OptimWrapper norm', 'torch clip_grad_norm_', 'NormClip'
SGD, ADAMW = 'step only (fused SGD)', 'step only (fused AdamW)'
StepFunction = Callable[..., Any]
#: Rules that reject SGD; they are measured with AdamW.
WITH_ADAMW = ('GradientStabilizer',)
SETTINGS = {'ValueClip': dict(clip_value=VALUE)}


def rule_step(
    name: str, params: list[nn.Parameter], model: nn.Module
) -> tuple[StepFunction, ClipHandle]:
    """A rule with a fused optimizer.

    Args:
        name: the rule.
        params: have gradients, which are the same afterwards.
        model: owns the parameters.

    Returns:
        The function that clips and steps, and the handle of :func:`gclip_mm.attach`. A rule with
        state has seen enough steps to clip.
    """
    kind: Any = CLIPPERS.get(name)
    clip_grad = {'type': name, **SETTINGS.get(name, kind.example)}
    optimizer: torch.optim.Optimizer
    if name in WITH_ADAMW:
        optimizer = torch.optim.AdamW(params, lr=LR, fused=True)
    else:
        optimizer = sgd(params, fused=True)
    handle = attach(optimizer, clip_grad, model=model)
    rule = handle.engine.config.outer
    if rule.State is not None:
        grads = [p.grad for p in params if p.grad is not None]
        torch._foreach_mul_(grads, 0.5)
        # More than half a window of timed steps, for the rule that clips at a percentile.
        starts = [getattr(rule, key, 0) for key in ('warmup_steps', 'grace_steps')]
        for _ in range(max(*starts, 10) + 1):
            # Each warm-up step starts from the same gradients.
            kept = [grad.clone() for grad in grads]
            optimizer.step()
            foreach_copy_(grads, kept)
        torch._foreach_mul_(grads, 2.0)
    return optimizer.step, handle


def measure_all(
    config: str | None,
    tensors: int | None = None,
    numel: int = 16,
    gradients: str = 'random',
    only: Sequence[str] | None = None,
    rounds: int = 20,
    device: str = 'cpu',
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Measure rules and peers.

    Args:
        config: a detection config, whose parameters are taken; not read if ``tensors`` is given.
        tensors: number of tensors to take instead.
        numel: elements of each of them.
        gradients: ``random`` (standard normal), or ``model`` (one backward pass of the model).
        only: the rules and peers; None: all.
        rounds: number of timed rounds.
        device: ``cpu`` or ``cuda``.

    Returns:
        A row for each rule and peer, and a description of the measurement.

    Raises:
        ValueError: an unknown name in ``only``, or a backward pass that is not finite.
    """
    place = torch.device(device)
    model = _make_model(config, tensors, numel, place)
    params = [p for p in model.parameters() if p.requires_grad]
    if gradients == 'model':
        model_gradients(model, params)
    else:
        random_gradients(params)
    grads = [p.grad for p in params if p.grad is not None]
    master = [grad.clone() for grad in grads]

    def prepare() -> None:
        for p, grad in zip(params, grads, strict=True):
            p.grad = grad
        foreach_copy_(grads, master)

    prepare()
    steps = _make_steps(list(only or ()) or [*PEERS, *CLIPPERS], params, model, read_once(grads))
    print(f'timing {len(steps)} steps in turn, {rounds} rounds ...', file=sys.stderr)
    with warnings.catch_warnings():
        # The optimizers of all rows step the same parameters, in turn.
        warnings.filterwarnings('ignore', message='in .* iterations the parameters of')
        # The rows count memory and reads in one more run of each step.
        bar = ProgressBar(rounds + 2 + len(steps), file=sys.stderr)
        times = time_in_turn(steps, prepare, place, rounds, bar.update)
        rows = []
        for name, step in steps.items():
            rows.append(_row(name, step, prepare, place, times, grads))
            bar.update()
        print(file=sys.stderr)
    about = {
        'parameters': f'{tensors} tensors of {numel}' if tensors else config,
        'tensors': len(params),
        'weights': sum(p.numel() for p in params),
        'gradients': gradients,
        'device': torch.cuda.get_device_name(place) if place.type == 'cuda' else 'cpu',
        'threads': torch.get_num_threads(),
        'rounds': rounds,
        'torch': torch.__version__,
        'python': platform.python_version(),
        'targets': targets(times),
    }
    return rows, about


def _row(
    name: str,
    step: StepFunction,
    prepare: Callable[[], None],
    place: torch.device,
    times: dict[str, list[float]],
    grads: list[torch.Tensor],
) -> dict[str, Any]:
    """The columns of one step."""
    prepare()
    reads = host_reads(step)
    prepare()
    extra = peak_extra_bytes(step, place)
    prepare()
    total_bytes = sum(grad.numel() * grad.element_size() for grad in grads)
    return {
        **_time_columns(times, name),
        'host_reads': reads,
        'kernel_launches': kernel_launches(step, place),
        'peak_extra_percent_of_gradients': 100 * extra / total_bytes,
    }


def _make_model(
    config: str | None, tensors: int | None, numel: int, device: torch.device
) -> nn.Module:
    torch.manual_seed(0)
    if tensors:
        return many_tensors(tensors, numel).to(device)
    if config is None:
        raise ValueError('give a config or a number of tensors')
    return build_model(config).to(device)


def _make_steps(
    wanted: list[str], params: list[nn.Parameter], model: nn.Module, read: StepFunction
) -> dict[str, StepFunction]:
    """The steps to time, by name: one reading of the memory, the wanted ones, and the bases."""
    for name in wanted:
        if name not in PEERS and name not in CLIPPERS:
            raise ValueError(f'--only: unknown {name!r}; known: {", ".join([*PEERS, *CLIPPERS])}')
    bases = [SGD, STOCK, TORCH, OURS]
    if any(name in WITH_ADAMW for name in wanted):
        bases.append(ADAMW)
    steps: dict[str, StepFunction] = {'read once': read}
    for name in dict.fromkeys([*wanted, *bases]):
        if name in CLIPPERS:
            steps[name], _ = rule_step(name, params, model)
        else:
            steps[name] = PEERS[name](params, model)
    return steps


def _time_columns(times: dict[str, list[float]], name: str) -> dict[str, Any]:
    clip_alone = clip_alone_seconds(times, name)
    kind = 'rule' if name in CLIPPERS else 'limit' if name == 'read once' else 'peer'
    return {
        'name': name,
        'kind': kind,
        'clip_and_step_ms': 1e3 * statistics.median(times[name]),
        'clip_alone_ms': 1e3 * clip_alone,
        'clip_alone_over_read_once': clip_alone / statistics.median(times['read once']),
        'over_fused_step': ratio(times, name, without_clipping(name)),
        'over_mmengine_norm': ratio(times, name, STOCK),
        'over_torch_norm': ratio(times, name, TORCH),
        'over_our_norm': ratio(times, name, OURS),
    }


def without_clipping(name: str) -> str:
    """Name of the step of the same optimizer without clipping."""
    return ADAMW if name in WITH_ADAMW or name == ADAMW else SGD


def clip_alone_seconds(times: dict[str, list[float]], name: str) -> float:
    """Time that clipping adds to the step of the optimizer, in seconds: median over the rounds."""
    base = times[without_clipping(name)]
    return statistics.median(a - b for a, b in zip(times[name], base, strict=True))


def targets(times: dict[str, list[float]]) -> list[dict[str, Any]]:
    """The promised ratios, for the pairs that were measured.

    A ratio is that of clip+step. Against ``clip_grad_value_`` it is that of clipping alone, because
    the step alone takes more than the promised share of both.

    Args:
        times: seconds of each round, by name.
    """
    wanted = [
        (OURS, STOCK, 0.40, 'clip+step'),
        (OURS, TORCH, 0.85, 'clip+step'),
        ('AGC', 'AGC as timm', 0.28, 'clip+step'),
        ('ValueClip', 'torch clip_grad_value_', 0.60, 'clip alone'),
        ('ValueClip', 'torch clip_grad_value_', None, 'clip+step'),
        ('AutoClip', OURS, 1.15, 'clip+step'),
        ('ZClip', OURS, 1.15, 'clip+step'),
        ('AdaGC', OURS, 1.5, 'clip+step'),
        ('ParamNormClip', OURS, 1.5, 'clip+step'),
        (OURS, 'torch _foreach_norm only', 1.5, 'clip+step'),
    ]
    found = []
    for a, b, limit, part in wanted:
        if a in times and b in times:
            if part == 'clip alone':
                measured = clip_alone_seconds(times, a) / clip_alone_seconds(times, b)
            else:
                measured = ratio(times, a, b)
            found.append(dict(what=a, over=b, of=part, at_most=limit, measured=round(measured, 3)))
    return found
