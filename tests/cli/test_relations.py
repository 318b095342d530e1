"""browse_relations draws the relations of an annotation file and of a config."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip('mmdet')

from gclip_mm.cli import relations as tool


def run(arguments):
    tool.run(tool.parse_args(arguments))


CONTENT = dict(
    images=[
        dict(id=i, file_name=f'{name}.png', width=60, height=40, scene=0)
        for i, name in enumerate('abc')
    ],
    categories=[dict(id=1, name='dog'), dict(id=2, name='sofa')],
    predicates=[dict(id=0, name='on'), dict(id=1, name='left of'), dict(id=2, name='right of')],
    scenes=[dict(id=0, name='home')],
    annotations=[
        dict(id=3 * i + k, image_id=i, category_id=1 + k % 2, bbox=box, area=100, iscrowd=0)
        for i in range(3)
        for k, box in enumerate(([2, 2, 10, 10], [20, 5, 30, 30], [40, 2, 9, 9]))
    ],
    relations=[
        dict(image_id=0, subject_id=0, object_id=1, predicate_id=1),
        dict(image_id=0, subject_id=2, object_id=1, predicate_id=0),
        dict(image_id=2, subject_id=6, object_id=7, predicate_id=1),
    ],
)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / 'data.json').write_text(json.dumps(CONTENT))
    for name in 'abc':
        cv2.imwrite(str(tmp_path / f'{name}.png'), np.full((40, 60, 3), (200, 60, 20), np.uint8))
    return tmp_path


def drawn(folder):
    return sorted(path.name for path in (folder / 'out').iterdir())


def test_annotation_file_is_drawn(folder, capsys):
    run([str(folder / 'data.json'), '--out', str(folder / 'out')])
    assert drawn(folder) == ['000000_a.png', '000001_b.png', '000002_c.png']
    output = capsys.readouterr().out
    assert [line.split() for line in output.splitlines() if line.endswith(('0', '1', '2'))] == [
        ['left', 'of', '2'],
        ['on', '1'],
        ['right', 'of', '0'],
    ]
    picture = cv2.imread(str(folder / 'out/000000_a.png'))
    # The image is on the left half, in its own color (blue, not red).
    middle = picture[picture.shape[0] // 2, picture.shape[1] // 8]
    np.testing.assert_allclose(middle.astype(int), [200, 60, 20], atol=3)
    # Image b has no relations: its picture has boxes and names, but no arrows.
    blue = np.array([0xAA, 0x66, 0x33])
    arrows = [
        (np.abs(cv2.imread(str(folder / 'out' / name)).astype(int) - blue) < 8).all(axis=2).sum()
        for name in drawn(folder)
    ]
    assert arrows[1] == 0 < arrows[2] < arrows[0]


def test_predicate_selects_images_and_relations(folder):
    source = str(folder / 'data.json')
    run([source, '--out', str(folder / 'out'), '--predicate', 'left of'])
    assert drawn(folder) == ['000000_a.png', '000002_c.png']
    dataset = tool.build_dataset(tool.parse_args([source]))
    packed = dataset[0]
    tool.picture(packed, dataset.metainfo, 'left of', 20)
    assert packed['data_samples'].gt_relations.pairs.tolist() == [[0, 1]]
    packed = dataset[0]
    tool.picture(packed, dataset.metainfo, None, 1)
    assert len(packed['data_samples'].gt_relations) == 1


def test_num_and_shuffle(folder):
    source, out = str(folder / 'data.json'), str(folder / 'out')
    run([source, '--out', out, '--num', '1'])
    assert drawn(folder) == ['000000_a.png']
    chosen = set()
    for seed in range(8):
        run([source, '--out', f'{out}{seed}', '--num', '1', '--shuffle', str(seed)])
        chosen |= {path.name for path in Path(f'{out}{seed}').iterdir()}
    assert len(chosen) > 1


def test_config_is_drawn_after_its_pipeline(folder):
    pipeline = [
        dict(type='LoadImageFromFile'),
        dict(type='LoadSceneGraphAnnotations'),
        dict(type='RandomFlip', prob=1.0),
        dict(type='PackSceneGraphInputs'),
    ]
    dataset = dict(
        type='SceneGraphDataset',
        data_root=str(folder),
        ann_file='data.json',
        data_prefix=dict(img=''),
        metainfo=dict(flip_predicate_pairs=[('left of', 'right of')]),
        pipeline=pipeline,
    )
    config = folder / 'config.py'
    config.write_text(f'train_dataloader = dict(dataset={dataset!r})\n')
    args = tool.parse_args([str(config)])
    sample = tool.build_dataset(args)[0]['data_samples']
    assert sample.gt_relations.labels.tolist() == [2, 0]  # left of became right of
    out = str(folder / 'out')
    run([str(config), '--out', out])
    assert len(drawn(folder)) == 3
    with pytest.raises(ValueError, match='has no val_dataloader'):
        run([str(config), '--split', 'val'])
    option = 'train_dataloader.dataset.type=CocoDataset'
    with pytest.raises(ValueError, match='the CocoDataset of .* has no relations'):
        run([str(config), '--out', out, '--cfg-options', option])
    option = 'train_dataloader.dataset.pipeline.3.type=PackDetInputs'
    with pytest.raises(ValueError, match='must end in PackSceneGraphInputs'):
        run([str(config), '--out', out, '--cfg-options', option])


def test_mistakes_raise_named_errors(folder, capsys):
    source = str(folder / 'data.json')
    with pytest.raises(ValueError, match=r"no predicate 'under'; there are \['on', 'left of'"):
        run([source, '--predicate', 'under'])
    with pytest.raises(ValueError, match="no image has a relation 'right of'"):
        run([source, '--predicate', 'right of'])
    for args, message in (
        ([source, '--num', '0'], '--num must be at least 1'),
        ([str(folder / 'missing.json')], r'missing.json does not exist'),
    ):
        with pytest.raises(SystemExit):
            run(args)
        assert message in capsys.readouterr().err
