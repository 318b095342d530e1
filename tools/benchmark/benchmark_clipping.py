"""Time every clipping rule and its peers side by side, in one process, on one set of parameters.

Example::

    python tools/benchmark/benchmark_clipping.py --out results/benchmark/faster-rcnn_r50_cpu
    python tools/benchmark/benchmark_clipping.py --tensors 10000 --numel 16 --out ...

Every figure is a ratio of two things that were run in turn, round by round; the absolute times
depend on the machine. The gradients are random and are restored before every run; the thresholds
are such that every rule clips.
"""

from __future__ import annotations

import argparse
import csv
import json
import platform
import statistics
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch  # noqa: E402
from measure import (  # noqa: E402
    host_reads,
    kernel_launches,
    peak_extra_bytes,
    ratio,
    read_once,
    time_in_turn,
)
from peers import PEERS, sgd  # noqa: E402
from torch import nn  # noqa: E402

import gclip_mm  # noqa: E402
from gclip_mm import CLIPPERS  # noqa: E402

DEFAULT = 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'
STOCK, TORCH, OURS = 'MMEngine OptimWrapper norm', 'torch clip_grad_norm_', 'NormClip'


def build_model(config: str) -> nn.Module:
    """The model of an mmdet config with random weights; nothing is downloaded."""
    from mmdet.registry import MODELS
    from mmdet.utils import register_all_modules
    from mmengine.config import Config

    from gclip_mm.engine.launch import find_config

    register_all_modules()
    cfg = Config.fromfile(find_config(config)).model
    for part in (cfg, cfg.get('backbone', {})):
        part.pop('init_cfg', None)
    return MODELS.build(cfg)


def many_tensors(count: int, numel: int) -> nn.Module:
    model = nn.Module()
    model.weights = nn.ParameterList(nn.Parameter(torch.randn(numel)) for _ in range(count))
    return model


def rule_step(name: str, params: list[nn.Parameter], model: nn.Module) -> tuple[Any, Any]:
    """A rule with a fused SGD: the step function, and the handle that clips for it."""
    clip_grad = {'type': name, **CLIPPERS.get(name).example}
    if name == 'GradientStabilizer':
        optimizer = torch.optim.AdamW(params, lr=1e-9, fused=True)
    else:
        optimizer = sgd(params, fused=True)
    handle = gclip_mm.attach(optimizer, clip_grad, model=model)
    return optimizer.step, handle


def measure_all(args: argparse.Namespace) -> tuple[list[dict], dict]:
    device = torch.device(args.device)
    torch.manual_seed(0)
    model = many_tensors(args.tensors, args.numel) if args.tensors else build_model(args.config)
    model.to(device)
    params = [p for p in model.parameters() if p.requires_grad]
    for p in params:
        p.grad = torch.randn_like(p)
    grads = [p.grad for p in params]
    master = [grad.clone() for grad in grads]
    wanted = args.only or [*PEERS, *CLIPPERS]
    unknown = [name for name in wanted if name not in PEERS and name not in CLIPPERS]
    if unknown:
        sys.exit(f'--only: unknown {unknown[0]!r}; known: {", ".join([*PEERS, *CLIPPERS])}')

    def prepare() -> None:
        for p, grad in zip(params, grads, strict=True):
            p.grad = grad
        torch._foreach_copy_(grads, master)

    prepare()
    steps = {'read once': read_once(grads)}
    handles = {}
    for name in wanted:
        if name in CLIPPERS:
            # The adaptive rules meet steady gradients here: warm-ups would be all they show.
            steps[name], handles[name] = rule_step(name, params, model)
        else:
            steps[name] = PEERS[name](params, model)
    for base in ('step only (fused SGD)', STOCK, TORCH, OURS):
        if base not in steps:
            steps[base] = (
                rule_step(base, params, model)[0]
                if base in CLIPPERS
                else PEERS[base](params, model)
            )
    print(f'timing {len(steps)} steps in turn, {args.rounds} rounds ...', file=sys.stderr)
    times = time_in_turn(steps, prepare, device, args.rounds)

    total_bytes = sum(grad.numel() * grad.element_size() for grad in grads)
    rows = []
    for name, step in steps.items():
        ours = name in CLIPPERS
        clip_alone = ratio_of_difference(times, name)
        prepare()
        reads = host_reads(step)
        prepare()
        extra = peak_extra_bytes(step, device)
        prepare()
        rows.append(
            {
                'name': name,
                'kind': 'rule' if ours else ('limit' if name == 'read once' else 'peer'),
                'clip_and_step_ms': 1e3 * statistics.median(times[name]),
                'clip_alone_ms': 1e3 * clip_alone,
                'clip_alone_over_read_once': clip_alone / statistics.median(times['read once']),
                'over_fused_step': ratio(times, name, 'step only (fused SGD)'),
                'over_mmengine_norm': ratio(times, name, STOCK),
                'over_torch_norm': ratio(times, name, TORCH),
                'over_our_norm': ratio(times, name, OURS),
                'host_reads': reads,
                'kernel_launches': kernel_launches(step, device),
                'peak_extra_percent_of_gradients': 100 * extra / total_bytes,
            }
        )
    about = {
        'parameters': f'{args.tensors} tensors of {args.numel}' if args.tensors else args.config,
        'tensors': len(params),
        'weights': sum(p.numel() for p in params),
        'device': torch.cuda.get_device_name(device) if device.type == 'cuda' else 'cpu',
        'threads': torch.get_num_threads(),
        'rounds': args.rounds,
        'torch': torch.__version__,
        'python': platform.python_version(),
        'command': ' '.join(['python', 'tools/benchmark/benchmark_clipping.py', *sys.argv[1:]]),
        'targets': targets(times),
    }
    return rows, about


def ratio_of_difference(times: dict[str, list[float]], name: str) -> float:
    """What clipping adds to the fused step, in seconds: the median difference round by round."""
    base = times['step only (fused SGD)']
    return statistics.median(a - b for a, b in zip(times[name], base, strict=True))


def targets(times: dict[str, list[float]]) -> list[dict]:
    """The ratios that the package promises, where both sides were measured."""
    wanted = [
        ('NormClip', STOCK, 0.40),
        ('NormClip', TORCH, 0.85),
        ('AGC', 'AGC as timm', 0.28),
        ('ValueClip', 'torch clip_grad_value_', 0.60),
        ('AutoClip', 'NormClip', 1.15),
        ('ZClip', 'NormClip', 1.15),
        ('AdaGC', 'NormClip', 1.5),
        ('ParamNormClip', 'NormClip', 1.5),
        ('NormClip', 'torch _foreach_norm only', 1.5),
    ]
    return [
        {'what': a, 'over': b, 'at_most': limit, 'measured': round(ratio(times, a, b), 3)}
        for a, b, limit in wanted
        if a in times and b in times
    ]


def print_table(rows: list[dict], about: dict) -> None:
    print(
        f'{about["parameters"]}: {about["tensors"]} tensors, {about["weights"] / 1e6:.1f}M weights,'
        f' {about["device"]}, {about["threads"]} threads, {about["rounds"]} rounds'
    )
    head = (
        '',
        'clip+step ms',
        'clip ms',
        '/read once',
        '/stock',
        '/torch',
        '/ours',
        'reads',
        'mem %',
    )
    print(f'{head[0]:36}' + ''.join(f'{title:>13}' for title in head[1:]))
    for row in rows:
        print(
            f'{row["name"]:36}{row["clip_and_step_ms"]:13.2f}{row["clip_alone_ms"]:13.2f}'
            f'{row["clip_alone_over_read_once"]:13.2f}{row["over_mmengine_norm"]:13.3f}'
            f'{row["over_torch_norm"]:13.3f}{row["over_our_norm"]:13.3f}{row["host_reads"]:13d}'
            f'{row["peak_extra_percent_of_gradients"]:13.2f}'
        )
    for target in about['targets']:
        verdict = 'met' if target['measured'] <= target['at_most'] else 'MISSED'
        print(
            f'{target["what"]} / {target["over"]}: {target["measured"]:.3f}, '
            f'promised at most {target["at_most"]:.2f}: {verdict}'
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--config', default=DEFAULT, help=f'whose parameters (default: {DEFAULT})')
    parser.add_argument('--tensors', type=int, help='instead of a config: this many tensors')
    parser.add_argument('--numel', type=int, default=16, help='of this many elements each')
    parser.add_argument('--only', nargs='+', help='rules and peers to time (default: all)')
    parser.add_argument('--rounds', type=int, default=20)
    parser.add_argument('--threads', type=int, help='CPU threads (default: what torch takes)')
    parser.add_argument('--device', default='cpu', help='cpu or cuda')
    parser.add_argument('--out', type=Path, help='write OUT.csv and OUT.json')
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    rows, about = measure_all(args)
    print_table(rows, about)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        with args.out.with_suffix('.csv').open('w', newline='') as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
        args.out.with_suffix('.json').write_text(
            json.dumps({'about': about, 'rows': rows}, indent=2) + '\n'
        )
        print(f'written: {args.out.with_suffix(".csv")}, {args.out.with_suffix(".json")}')


if __name__ == '__main__':
    main()
