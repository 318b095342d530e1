"""PredCls from the classes of subject and object alone: no network, no training.

Counts the training split, gives every pair of annotated boxes the log-frequencies of its two
classes, and evaluates the validation split. The data are ShapeScenes, or train.json and val.json in
a folder.

Example:
    python results/scene_graph/frequency_baseline.py --out results/scene_graph/frequency.json
    python results/scene_graph/frequency_baseline.py --data data/derived --out frequency.json
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch

# A checkout works without being installed, and before an installed copy.
ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from mmengine.config import Config  # noqa: E402

from gclip_mm.scene_graph.datasets import (  # noqa: E402
    SceneGraphDataset,
    ShapeScenesGraphDataset,
)
from gclip_mm.scene_graph.engine.frequency_bias_hook import count_relations  # noqa: E402
from gclip_mm.scene_graph.evaluation import scene_graph_recall  # noqa: E402
from gclip_mm.scene_graph.models import FrequencyBias  # noqa: E402
from gclip_mm.scene_graph.models.task_modules import all_pairs  # noqa: E402


def evaluate(train: SceneGraphDataset, val: SceneGraphDataset) -> dict[str, float]:
    meta = train.metainfo
    bias = FrequencyBias(len(meta['classes']), len(meta['predicates']))
    bias.set_counts(*count_relations(train, only_overlapping=False))
    predictions, truths = [], []
    for i in range(len(val)):
        info = val.get_data_info(i)
        boxes = np.array([x['bbox'] for x in info['instances']], np.float64)
        labels = np.array([x['bbox_label'] for x in info['instances']])
        place = {x['ann_id']: n for n, x in enumerate(info['instances'])}
        pairs = all_pairs(len(labels), torch.device('cpu'))
        with torch.no_grad():
            scores = bias(torch.from_numpy(labels), pairs).softmax(dim=1)[:, :-1]
        objects = dict(bboxes=boxes, labels=labels)
        predictions.append(
            dict(
                objects,
                scores=np.ones(len(labels)),
                pairs=pairs.numpy(),
                rel_scores=scores.numpy(),
            )
        )
        relations = [(place[s], place[o], p) for s, o, p in info['relations'].tolist()]
        truths.append(dict(objects, relations=np.array(relations, np.int64).reshape(-1, 3)))
    return scene_graph_recall(predictions, truths, ks=(20,))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--out', type=Path, required=True, help='JSON to write')
    parser.add_argument('--data', type=Path, help='folder of train.json and val.json')
    args = parser.parse_args()
    train, val = shape_scenes() if args.data is None else folder(args.data)
    result = {key: round(value, 4) for key, value in evaluate(train, val).items()}
    args.out.write_text(json.dumps(result, indent=1) + '\n')
    print(result)


def shape_scenes() -> list[SceneGraphDataset]:
    """Both splits of the configs of configs/scene_graph/shapescenes."""
    cfg = Config.fromfile(str(ROOT / 'configs/scene_graph/_base_/shapescenes.py'))
    return [
        ShapeScenesGraphDataset(
            data_root=cfg.data_root,
            params=cfg.params.to_dict(),
            ann_file=f'annotations/{split}.json',
            test_mode=split == 'val',
            pipeline=[],
        )
        for split in ('train', 'val')
    ]


def folder(path: Path) -> list[SceneGraphDataset]:
    """Both splits of data that ``gclip convert`` wrote."""
    return [
        SceneGraphDataset(
            data_root=str(path),
            ann_file=f'{split}.json',
            data_prefix=dict(img=''),
            test_mode=split == 'val',
            pipeline=[],
        )
        for split in ('train', 'val')
    ]


if __name__ == '__main__':
    main()
