"""Plants bad boxes and bad pixels in a copy of BCCD, trains, and looks for their names.

    python results/spikes/reproduce.py --out results/spikes

Planted in the training split, each in an image of its own:

* ``empty_box``: a box without width, as one photo of BCCD has by itself; its regression target is
  not a number;
* ``huge_box``: a box 4 million pixels wide. It takes a pipeline that does not cut boxes at the
  border and an RPN that gives every box an anchor, as RetinaNet does (``min_pos_iou=0``), for it to
  do any harm: a regression target of thousands;
* ``broken_pixels``: a photo saved as 32-bit float TIFF in which a block of pixels is infinite, as
  after a division by zero in a flat-field correction;
* ``blank``: a photo of nothing but 255, whose boxes are still there.

The detector trains with ``GClipSpikeHook`` and its defaults; ``browse_spikes.py`` draws what it
wrote, and the planted images are looked up in it.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from gclip_mm.analysis.spikes import rank_images, read_spikes  # noqa: E402

CONFIG = 'configs/bccd/faster-rcnn_tiny_bccd.py'
#: What is planted where: the place in the list of training images.
PLANTED = {'empty_box': 20, 'huge_box': 60, 'broken_pixels': 100, 'blank': 140}


def plant(source: Path, target: Path) -> dict[str, str]:
    """Copy BCCD with the faults; the name of the image that has each."""
    if target.exists():
        shutil.rmtree(target)
    shutil.copytree(source, target)
    names = (target / 'ImageSets' / 'Main' / 'train.txt').read_text().split()
    chosen = {fault: names[i] for fault, i in PLANTED.items()}
    _set_box(target, chosen['empty_box'], 'xmin', same_as='xmax')
    _set_box(target, chosen['huge_box'], 'xmax', value=4_000_000)
    path = target / 'JPEGImages' / f'{chosen["broken_pixels"]}.jpg'
    pixels = cv2.imread(str(path)).astype(np.float32)
    pixels[100:140, 200:240] = np.inf
    # The name stays: what a file is, is told by its first bytes.
    path.write_bytes(cv2.imencode('.tiff', pixels)[1].tobytes())
    path = target / 'JPEGImages' / f'{chosen["blank"]}.jpg'
    cv2.imwrite(str(path), np.full_like(cv2.imread(str(path)), 255))
    return chosen


def _set_box(
    root: Path, name: str, key: str, value: int | None = None, same_as: str | None = None
) -> None:
    """Change a number of the first box of an annotation."""
    path = root / 'Annotations' / f'{name}.xml'
    text = path.read_text()
    if same_as is not None:
        value = int(re.search(rf'<{same_as}>(-?\d+)</{same_as}>', text)[1])
    path.write_text(re.sub(rf'<{key}>-?\d+</{key}>', f'<{key}>{value}</{key}>', text, count=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--data', type=Path, default=Path('data/BCCD'))
    parser.add_argument('--out', type=Path, default=Path('results/spikes'))
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/spikes'))
    parser.add_argument('--iterations', type=int, default=104)
    args = parser.parse_args()
    data = args.work_dir / 'planted'
    chosen = plant(ROOT / args.data, ROOT / data)
    options = [
        f'train_dataloader.dataset.data_root={data}/',
        # The filter that would leave the empty box out is what is taken away here.
        'train_dataloader.dataset.filter_cfg.bbox_min_size=None',
        'train_dataloader.dataset.pipeline.2.clip_object_border=False',
        'model.train_cfg.rpn.assigner.min_pos_iou=0.0',
        # Float pixels as they are in the file.
        'train_dataloader.dataset.pipeline.0.color_type=unchanged',
        'train_dataloader.dataset.pipeline.0.to_float32=True',
        f'train_cfg.max_iters={args.iterations}',
        'train_cfg.val_interval=100000',
    ]
    config = args.work_dir / 'with_hook.py'
    base = os.path.relpath(ROOT / CONFIG, ROOT / args.work_dir)
    (ROOT / config).write_text(
        f"_base_ = [{base!r}]\ncustom_hooks = [dict(type='GClipSpikeHook')]\n"
    )
    command = ['python', 'tools/train.py', str(config), '--work-dir', str(args.work_dir / 'run')]
    command += ['--cfg-options', *options]
    browse = ['python', 'tools/analysis/browse_spikes.py', CONFIG, str(args.work_dir / 'run')]
    browse += ['--cfg-options', *options[:2]]
    if (ROOT / args.work_dir / 'run').exists():
        shutil.rmtree(ROOT / args.work_dir / 'run')
    for step in (command, browse):
        print('+', shlex.join(step), flush=True)
        done = subprocess.run(step, cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            sys.exit(done.stdout[-2000:] + done.stderr[-2000:])
    print(done.stdout)

    spikes = read_spikes(ROOT / args.work_dir / 'run')
    counts = {Path(image.path).stem: count for image, count in rank_images(spikes)}
    bad = set(chosen.values())
    innocent = [s for s in spikes if not bad & {Path(i.path).stem for i in s.images}]
    found = {}
    for fault, name in chosen.items():
        mine = [s for s in spikes if name in {Path(i.path).stem for i in s.images}]
        found[fault] = {
            'image': f'{name}.jpg',
            'spikes_with_it': counts.get(name, 0),
            'alone': sum(len(bad & {Path(i.path).stem for i in s.images}) == 1 for s in mine),
            'causes': sorted({s.loss_term or s.cause for s in mine}),
        }
    args.out.mkdir(parents=True, exist_ok=True)
    content = {
        'iterations': args.iterations,
        'spikes': len(spikes),
        'spikes_without_a_planted_image': len(innocent),
        'largest_innocent_count': max(
            (count for name, count in counts.items() if name not in bad), default=0
        ),
        'planted': found,
        'command': shlex.join(command),
        'browse_command': shlex.join(browse),
        'listing': done.stdout.splitlines(),
    }
    (args.out / 'spikes.json').write_text(json.dumps(content, indent=2) + '\n')
    shutil.copy(ROOT / args.work_dir / 'run' / 'spikes.jsonl', args.out / 'spikes.jsonl')
    print(json.dumps(found, indent=2))


if __name__ == '__main__':
    main()
