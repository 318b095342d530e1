"""Kills the quickstart with SIGKILL, resumes it, and compares it bit by bit with a run left alone.

    python results/resume/reproduce.py --out results/resume

For each rule: one run that is left alone; one that is killed at a random moment after its first
checkpoint; one that is killed while a checkpoint is being written (as soon as the half-written file
is seen). The killed runs are resumed with ``--resume``, and weights, optimizer state and clipping
state of the last checkpoints are compared.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import gclip_mm  # noqa: E402, F401  lets torch read MMEngine's checkpoints

CONFIG = 'configs/quickstart/faster-rcnn_tiny_shapescenes.py'
#: Thresholds at which each rule clips within the few steps of these runs.
RULES = {
    'NormClip': 'type=NormClip,max_norm=1.0',
    'AGC': 'type=AGC,clip_factor=0.02',
    'AutoClip': 'type=AutoClip,percentile=30,window=20',
    'ZClip': 'type=ZClip,warmup_steps=8,z_threshold=0.2,max_norm=None',
    'AdaGC': 'type=AdaGC,warmup_steps=8,max_norm=5.0',
}


class Trainer:
    """Starts trainings of one rule.

    Args:
        recipe: the rule, as for ``--clip``.
        iterations: length of a run.
        interval: iterations between checkpoints.
        prefix: put before each command.
    """

    def __init__(self, recipe: str, iterations: int, interval: int, prefix: list[str]) -> None:
        self.recipe = recipe
        self.last = f'iter_{iterations}.pth'
        self.prefix = prefix
        self.options = [
            f'train_cfg.max_iters={iterations}',
            'train_cfg.val_interval=100000',
            'param_scheduler.0.end=10',
            'param_scheduler.1.begin=10',
            f'param_scheduler.1.end={iterations}',
            'default_hooks.logger.interval=1',
            'default_hooks.checkpoint.type=GClipCheckpointHook',
            f'default_hooks.checkpoint.interval={interval}',
            'default_hooks.checkpoint.max_keep_ckpts=1',
        ]

    def command(self, work_dir: Path, resume: bool = False) -> list[str]:
        # --cfg-options has no words for a list of hooks.
        config = work_dir.parent / 'with_hook.py'
        base = os.path.relpath(ROOT / CONFIG, ROOT / config.parent)
        (ROOT / config).parent.mkdir(parents=True, exist_ok=True)
        (ROOT / config).write_text(
            f"_base_ = [{base!r}]\ncustom_hooks = [dict(type='GClipRNGStateHook')]\n"
            # The thresholds are for this optimizer, whose state is larger than that of SGD.
            "optim_wrapper = dict(optimizer=dict(_delete_=True, type='AdamW', lr=2e-3,\n"
            '    weight_decay=0.01, fused=True))\n'
        )
        command = ['python', 'tools/train.py', str(config), '--clip', self.recipe]
        command += ['--work-dir', str(work_dir), *(['--resume'] * resume)]
        return [*command, '--cfg-options', *self.options]

    def start(self, work_dir: Path, resume: bool = False) -> subprocess.Popen:
        command = self.command(work_dir, resume)
        print('+', shlex.join(command), flush=True)
        log = (ROOT / work_dir).with_suffix('.log')
        log.parent.mkdir(parents=True, exist_ok=True)
        return subprocess.Popen(
            [*self.prefix, *command],
            cwd=ROOT,
            stdout=log.open('a'),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def finish(self, work_dir: Path, resume: bool = False) -> dict:
        """Train to the end; the last checkpoint."""
        if self.start(work_dir, resume).wait():
            sys.exit(f'the training failed, see {work_dir}.log')
        return torch.load(ROOT / work_dir / self.last, map_location='cpu')


def kill(process: subprocess.Popen) -> None:
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def iterations_logged(work_dir: Path) -> int:
    """The last iteration that the run has logged."""
    last = 0
    for path in (ROOT / work_dir).glob('*/vis_data/scalars.json'):
        for row in path.read_text().splitlines():
            if row.endswith('}'):
                last = max(last, json.loads(row).get('iter', 0))
    return last


def kill_at_random(trainer: Trainer, work_dir: Path, seconds: float) -> dict:
    """Kill within the given time after the first checkpoint."""
    process = trainer.start(work_dir)
    while not (ROOT / work_dir / 'last_checkpoint').exists():
        if process.poll() is not None:
            sys.exit(f'the training ended early, see {work_dir}.log')
        time.sleep(0.01)
    time.sleep(random.uniform(0, seconds))
    if process.poll() is not None:
        sys.exit('the training was over before it could be killed; try again')
    kill(process)
    return {'killed': 'at a random moment', 'after_iteration': iterations_logged(work_dir)}


def kill_in_write(trainer: Trainer, work_dir: Path) -> dict:
    """Kill when the file of a checkpoint, the second or a later one, is half written."""
    process = trainer.start(work_dir)
    folder = ROOT / work_dir
    while process.poll() is None:
        if (folder / 'last_checkpoint').exists():
            found = list(folder.glob('*.partial'))
            if found:
                kill(process)
                break
        time.sleep(0.0002)
    left = list(folder.glob('*.partial'))
    if not left:
        sys.exit('no write was caught; try again')
    return {
        'killed': f'while {left[0].name} was written',
        'after_iteration': iterations_logged(work_dir),
        'bytes_written': left[0].stat().st_size,
    }


def differences(left: object, right: object, where: str = '') -> list[str]:
    """Where two checkpoints differ."""
    if type(left) is not type(right):
        return [where]
    if isinstance(left, dict):
        if left.keys() != right.keys():
            return [where]
        return [d for key in left for d in differences(left[key], right[key], f'{where}.{key}')]
    if isinstance(left, list | tuple):
        if len(left) != len(right):
            return [where]
        pairs = enumerate(zip(left, right, strict=True))
        return [d for i, pair in pairs for d in differences(*pair, f'{where}[{i}]')]
    same = torch.equal(left, right) if isinstance(left, torch.Tensor) else left == right
    return [] if same else [where]


def _other_rows(path: Path, rules: list[str]) -> list[dict]:
    """What an earlier call has measured of other rules."""
    if not path.exists():
        return []
    return [row for row in json.loads(path.read_text())['runs'] if row['rule'] not in rules]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--out', type=Path, default=ROOT / 'results' / 'resume')
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/resume'))
    parser.add_argument('--rules', nargs='+', choices=list(RULES), default=list(RULES))
    parser.add_argument('--iterations', type=int, default=30)
    parser.add_argument('--interval', type=int, default=6)
    parser.add_argument('--prefix', default='', help='put before each command, as "nice"')
    args = parser.parse_args()
    rows = _other_rows(args.out / 'resume.json', args.rules)
    for rule in args.rules:
        if (ROOT / args.work_dir / rule).exists():
            shutil.rmtree(ROOT / args.work_dir / rule)
        trainer = Trainer(RULES[rule], args.iterations, args.interval, shlex.split(args.prefix))
        folder = args.work_dir / rule
        begin = time.time()
        straight = trainer.finish(folder / 'straight')
        took = time.time() - begin
        coefs = straight['message_hub']['log_scalars']['train/clip_coef'].data[0]
        for name in ('random', 'write'):
            work_dir = folder / name
            if name == 'random':
                how = kill_at_random(trainer, work_dir, 0.4 * took)
            else:
                how = kill_in_write(trainer, work_dir)
            resumed_from = Path((ROOT / work_dir / 'last_checkpoint').read_text()).name
            resumed = trainer.finish(work_dir, resume=True)
            parts = ('state_dict', 'optimizer', 'gclip_rng')
            differing = [d for p in parts for d in differences(resumed[p], straight[p], p)]
            rows.append(
                {
                    'rule': rule,
                    **how,
                    'resumed_from': resumed_from,
                    'steps_clipped': int((coefs < 1).sum()),
                    'steps': len(coefs),
                    'identical': not differing,
                    'differing': differing[:5],
                    'command': shlex.join(trainer.command(work_dir)),
                    'resume_command': shlex.join(trainer.command(work_dir, resume=True)),
                }
            )
            print(rows[-1], flush=True)
            args.out.mkdir(parents=True, exist_ok=True)
            rows.sort(key=lambda row: list(RULES).index(row['rule']))
            content = {'torch': torch.__version__, 'threads': torch.get_num_threads(), 'runs': rows}
            (args.out / 'resume.json').write_text(json.dumps(content, indent=2) + '\n')
    if not all(row['identical'] for row in rows):
        sys.exit('some runs differ')


if __name__ == '__main__':
    main()
