"""Run every rule with each training feature and strategy, and write the outcomes as a table.

``python -m tests.distributed.interactions --write`` runs all cells (about two minutes) and rewrites
the table in ``docs/interactions.md``; a test compares each cell of the table with a run.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.logging import MessageHub
from mmengine.optim import OptimWrapperDict
from torch import Tensor, nn

import gclip_mm
from gclip_mm import CLIPPERS, ClipConfigError, attach
from tests.clipping.cases import Runner, example, make_optimizer

ROOT = Path(__file__).resolve().parents[2]
DOC = ROOT / 'docs' / 'interactions.md'
WORKER = Path(__file__).with_name('worker.py')
BEGIN, END = '<!-- table: begin -->', '<!-- table: end -->'

SAME, FOLDED, HANDED_OVER = 'same', 'folded', 'handed over'
STEPS = 6


class Different(Exception):
    """The run and its reference differ."""


def make_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2))


def batch(step: int) -> Tensor:
    x = torch.randn(12, 4, generator=torch.Generator().manual_seed(step))
    return x * (30.0 if step == 4 else 1.0)


def loss_of(net: nn.Module, x: Tensor) -> Tensor:
    return (net(x).float() - 1).square().mean()


def require_same(found: list[Tensor], expected: list[Tensor], rtol: float = 1e-4) -> None:
    try:
        torch.testing.assert_close(found, expected, rtol=rtol, atol=1e-5)
    except AssertionError as error:
        raise Different(str(error)) from None


def weights(net: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in net.parameters()]


def plain(config: dict, cast: torch.dtype | None = None, fused: bool = False) -> list[Tensor]:
    """The reference: a training loop in one process with ``attach``."""
    net = make_net()
    optimizer = make_optimizer(config, net.parameters(), fused=fused)
    attach(optimizer, config, model=net)
    for step in range(STEPS):
        optimizer.zero_grad()
        with torch.autocast('cpu', dtype=cast, enabled=cast is not None):
            loss = loss_of(net, batch(step))
        loss.backward()
        optimizer.step()
    return weights(net)


def start_hub(config: dict) -> None:
    """Create a message hub for this run; wrappers log to the current hub."""
    MessageHub.get_instance(f'interactions {id(config)} {next(_numbers)}')


_numbers = iter(range(1 << 30))


# -- one process -------------------------------------------------------------------------------
def fp16(config: dict) -> str:
    """Float16 under a loss scaler with two overflows, with and without a fused optimizer."""
    for fused in (False, True):
        start_hub(config)
        net = make_net()
        optimizer = make_optimizer(config, net.parameters(), fused=fused)
        wrapper = gclip_mm.GClipAmpOptimWrapper(
            dict(init_scale=2.0**10, growth_interval=2),
            dtype='float16',
            optimizer=optimizer,
            clip_grad=config,
        )
        for step in range(STEPS):
            for spoilt in (True, False) if step in (0, 3) else (False,):
                with wrapper.optim_context(net):
                    loss = loss_of(net, batch(step)) * (1e30 if spoilt else 1.0)
                wrapper.update_params(loss)
        if wrapper.message_hub.get_scalar('train/nonfinite').data[0].sum() != 2:
            raise Different('the loss scaler did not find two overflows')
        require_same(weights(net), plain(config, torch.float16, fused))
    return SAME


def bf16(config: dict) -> str:
    """Bfloat16 autocast through the wrapper, then weights and gradients in bfloat16."""
    start_hub(config)
    net = make_net()
    wrapper = gclip_mm.GClipAmpOptimWrapper(
        dtype='bfloat16',
        optimizer=make_optimizer(config, net.parameters()),
        clip_grad=config,
    )
    for step in range(STEPS):
        with wrapper.optim_context(net):
            loss = loss_of(net, batch(step))
        wrapper.update_params(loss)
    require_same(weights(net), plain(config, torch.bfloat16))

    narrow, wide = (
        Runner(config, [torch.ones(s, dtype=d) for s in ((40, 30), (30,))])
        for d in (torch.bfloat16, torch.float32)
    )
    for step in range(STEPS):
        generator = torch.Generator().manual_seed(step)
        grads = [torch.randn(s, generator=generator).bfloat16() for s in ((40, 30), (30,))]
        found, expected = narrow(grads), wide([grad.float() for grad in grads])
        # Gradients agree to a unit in the last place of bfloat16, norms to float32 precision.
        require_same([grad.float() for grad in found], expected, rtol=2**-7)
        one, two = narrow.handle.stats(), wide.handle.stats()
        if not math.isclose(one['grad_norm'], two['grad_norm'], rel_tol=1e-6):
            raise Different(f'norm {one["grad_norm"]} instead of {two["grad_norm"]}')
    return SAME


def accumulation(config: dict) -> str:
    """Accumulation over three parts of a batch, against the whole batch."""
    start_hub(config)
    net = make_net()
    wrapper = gclip_mm.GClipOptimWrapper(
        make_optimizer(config, net.parameters()), accumulative_counts=3, clip_grad=config
    )
    wrapper.initialize_count_status(net, 0, 3 * STEPS)
    for step in range(STEPS):
        for part in batch(step).chunk(3):
            with wrapper.optim_context(net):
                loss = loss_of(net, part)
            wrapper.update_params(loss)
    require_same(weights(net), plain(config))
    return SAME


def fused(config: dict) -> str:
    """A fused optimizer; the outcome says whether the coefficient is folded into its kernel."""
    net = make_net()
    optimizer = make_optimizer(config, net.parameters(), fused=True)
    attach(optimizer, config, model=net)
    seen = []
    optimizer.register_step_pre_hook(lambda o, *_: seen.append(getattr(o, 'grad_scale', None)))
    for step in range(STEPS):
        optimizer.zero_grad()
        # Far above any threshold, so that every rule clips.
        (loss_of(net, batch(step)) * 100).backward()
        optimizer.step()
    slow = make_net()
    optimizer = make_optimizer(config, slow.parameters())
    attach(optimizer, config, model=slow)
    for step in range(STEPS):
        optimizer.zero_grad()
        (loss_of(slow, batch(step)) * 100).backward()
        optimizer.step()
    require_same(weights(net), weights(slow))
    return FOLDED if any(scale is not None for scale in seen) else SAME


def compiled(config: dict) -> str:
    """``torch.compile`` around the model and around the step."""
    torch._dynamo.reset()
    net = make_net()
    optimizer = make_optimizer(config, net.parameters())
    attach(optimizer, config, model=net)
    forward = torch.compile(net, backend='eager')
    step_once = torch.compile(lambda: optimizer.step(), backend='eager')
    for step in range(STEPS):
        optimizer.zero_grad()
        loss_of(forward, batch(step)).backward()
        step_once()
    require_same(weights(net), plain(config))
    return SAME


def wrapper_dict(config: dict) -> str:
    """Two members with the rule, against two separate runs."""
    start_hub(config)
    nets = {'a': make_net(), 'b': make_net()}
    wrappers = OptimWrapperDict(
        **{
            name: gclip_mm.GClipOptimWrapper(
                make_optimizer(config, net.parameters()), clip_grad=config
            )
            for name, net in nets.items()
        }
    )
    wrappers.initialize_count_status(nn.ModuleDict(nets), 0, STEPS)
    for step in range(STEPS):
        for name, net in nets.items():
            wrappers[name].update_params(loss_of(net, batch(step)))
    for net in nets.values():
        require_same(weights(net), plain(config))
    return SAME


# -- engines that clip by themselves -----------------------------------------------------------
def deepspeed(config: dict) -> str:
    """The rewritten config for DeepSpeed. DeepSpeed itself is not run."""
    cfg = _foreign('DeepSpeedOptimWrapper', dict(type='DeepSpeedStrategy'))
    gclip_mm.apply_clip(cfg, config)
    return _handed_over(cfg.strategy.get('gradient_clipping'), config)


def colossalai(config: dict) -> str:
    """The rewritten config for ColossalAI. ColossalAI itself is not run."""
    plugin = dict(type='LowLevelZeroPlugin')
    cfg = _foreign('ColossalAIOptimWrapper', dict(type='ColossalAIStrategy', plugin=plugin))
    gclip_mm.apply_clip(cfg, config)
    return _handed_over(cfg.strategy.plugin.get('max_norm'), config)


def apex(config: dict) -> str:
    """A config with Apex's wrapper."""
    gclip_mm.apply_clip(_foreign('ApexOptimWrapper', None), config)
    return SAME


def _foreign(wrapper: str, strategy: dict | None) -> Config:
    cfg = Config(dict(optim_wrapper=dict(type=wrapper, optimizer=dict(type='SGD', lr=0.1))))
    if strategy is not None:
        cfg.strategy = strategy
    return cfg


def _handed_over(value: Any, config: dict) -> str:
    if value != config.get('max_norm'):
        raise Different(f'{value} was handed over')
    return HANDED_OVER


LOCAL: dict[str, Callable[[dict], str]] = {
    'DeepSpeed': deepspeed,
    'ColossalAI': colossalai,
    'Apex': apex,
    'AMP fp16': fp16,
    'bf16': bf16,
    'accumulation': accumulation,
    'fused': fused,
    'compile': compiled,
    'OptimWrapperDict': wrapper_dict,
}
#: Columns that need several processes -> their name in the worker.
SPREAD = {'DDP': 'ddp', 'ZeRO': 'zero', 'FSDP1': 'fsdp1', 'FSDP2': 'fsdp2'}
COLUMNS = [*SPREAD, *LOCAL]


def spread_case(column: str, name: str) -> tuple[str, dict]:
    """Return the name and the content of the worker's case for a cell."""
    how, config = SPREAD[column], example(name)
    optimizer = 'adamw' if name == 'GradientStabilizer' else 'sgd'
    key = f'{how} {name} {optimizer}'
    # Other tests use the collectives that the case counts.
    case = dict(how=how, clip_grad=config, optimizer=optimizer, nan_step=3, count=how == 'fsdp2')
    return key, case


def check(name: str, column: str, spread: dict[int, dict]) -> str:
    """Return the outcome of a rule in a column, or ``raises: `` and the message.

    Args:
        name: a registered rule.
        column: one of ``COLUMNS``.
        spread: results of the worker by the number of processes.
    """
    if column in SPREAD:
        key, _ = spread_case(column, name)
        single, many = spread[1][key], spread[2][key]
        if 'error' in many:
            return f'raises: {tidy(many["error"], name)}'
        require_same(list(many['params'].values()), list(single['params'].values()))
        return SAME
    try:
        with quietly():
            return LOCAL[column](example(name))
    except ClipConfigError as error:
        return f'raises: {tidy(str(error), name)}'


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        yield


def tidy(message: str, name: str) -> str:
    """Remove the details of one rule from an error message, so that rules share footnotes."""
    message = re.sub(r"\{'type'.*\} asks", 'the config asks', message)
    message = re.sub(r'units of [\w.]+:', 'units of a parameter:', message)
    message = re.sub(r'max_norm=[\d.]+', 'max_norm=...', message)
    if name != 'AGC':
        message = message.replace(f'{name} keeps', 'the rule keeps')
    return ' '.join(message.split())


def write_table(outcomes: dict[str, dict[str, str]]) -> str:
    """The table as Markdown; errors are numbered and listed below it."""
    notes: list[str] = []

    def cell(outcome: str) -> str:
        if not outcome.startswith('raises: '):
            return outcome
        if outcome not in notes:
            notes.append(outcome)
        return f'raises [{notes.index(outcome) + 1}]'

    lines = ['| | ' + ' | '.join(COLUMNS) + ' |', '|---' * (len(COLUMNS) + 1) + '|']
    for name, row in outcomes.items():
        lines.append(f'| `{name}` | ' + ' | '.join(cell(row[c]) for c in COLUMNS) + ' |')
    listed = [f'{i}. `{note.removeprefix("raises: ")}`' for i, note in enumerate(notes, 1)]
    return '\n'.join([*lines, '', *listed])


def read_table(text: str) -> dict[str, dict[str, str]]:
    """The inverse of :func:`write_table`."""
    text = text.partition(BEGIN)[2].partition(END)[0]
    notes = dict(re.findall(r'^(\d+)\. `(.*)`$', text, re.M))
    lines = [line for line in text.splitlines() if line.startswith('|')]
    head = [cell.strip() for cell in lines[0].strip('|').split('|')][1:]
    table = {}
    for line in lines[2:]:
        name, *cells = (cell.strip() for cell in line.strip('|').split('|'))
        row = {}
        for column, cell in zip(head, cells, strict=True):
            number = re.fullmatch(r'raises \[(\d+)\]', cell)
            row[column] = f'raises: {notes[number[1]]}' if number else cell
        table[name.strip('`')] = row
    return table


def main() -> None:
    from tests.distributed.launching import launch

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--write', action='store_true', help=f'rewrite the table in {DOC}')
    args = parser.parse_args()
    cases = dict(spread_case(column, name) for column in SPREAD for name in CLIPPERS)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, 'out.pt')
        spread = {n: launch(WORKER, cases, n, out) for n in (1, 2)}
    outcomes = {name: {c: check(name, c, spread) for c in COLUMNS} for name in CLIPPERS}
    table = write_table(outcomes)
    print(table)
    if args.write:
        before, _, rest = DOC.read_text().partition(BEGIN)
        DOC.write_text(f'{before}{BEGIN}\n{table}\n{END}{rest.partition(END)[2]}')


if __name__ == '__main__':
    main()
