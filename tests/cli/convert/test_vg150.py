"""VG150 from small files in the format of the real ones."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

h5py = pytest.importorskip('h5py')

LABELS = {'airplane': 1, 'animal': 2, 'boy': 3}
PREDICATES = {'above': 1, 'on': 2}

# One entry a row of the h5 file: image id, size, split, boxes (label, cx, cy, w, h at long side
# 1024), relations (subject, object, predicate), both by position in the image.
ROWS = [
    # id, (width, height), split, boxes, relations
    (1, (1024, 512), 0, [(1, 100, 100, 60, 40), (3, 300, 200, 100, 100)], [(0, 1, 1)]),
    (2, (512, 1024), 0, [(2, 200, 700, 100, 60), (2, 230, 700, 80, 80)], []),  # no relations
    # 512 wide: coordinates are halved. The same pair twice, one of them an exact repeat.
    (
        1593,
        (512, 256),
        0,
        [(3, 40, 60, 20, 20), (1, 60, 60, 40, 30), (2, 500, 250, 10, 10)],
        [(1, 0, 2), (1, 0, 2), (1, 0, 1), (2, 1, 2)],
    ),
    (7, (1024, 1024), 0, [], []),  # no boxes either
    (8, (800, 600), 0, [(1, 512, 300, 1024, 600), (2, 100, 100, 50, 50)], [(1, 0, 2)]),
    (9, (1024, 768), 2, [(2, 1000, 100, 100, 60), (1, 500, 500, 9, 9)], [(0, 1, 1)]),
    (10, (1024, 768), 2, [(2, 50, 50, 60, 60)], []),
]


def write_files(folder, rows=ROWS, extra_images=(1592, 1722, 4616, 4617), **changes):
    """The three files. ``changes`` replace arrays of the h5 file; None leaves one out."""
    boxes, labels, relations, predicates = [], [], [], []
    index = {k: [] for k in ('first_box', 'last_box', 'first_rel', 'last_rel')}
    for _, _, _, row_boxes, row_relations in rows:
        index['first_box'].append(len(boxes) if row_boxes else -1)
        index['first_rel'].append(len(relations) if row_relations else -1)
        relations += [(s + len(boxes), o + len(boxes)) for s, o, _ in row_relations]
        predicates += [p for _, _, p in row_relations]
        boxes += [b[1:] for b in row_boxes]
        labels += [b[0] for b in row_boxes]
        index['last_box'].append(len(boxes) - 1 if row_boxes else -1)
        index['last_rel'].append(len(relations) - 1 if row_relations else -1)
    arrays = dict(
        split=np.array([row[2] for row in rows], np.int32),
        boxes_1024=np.array(boxes, np.int32),
        boxes_512=np.array(boxes, np.int32) // 2,
        labels=np.array(labels, np.int32)[:, None],
        attributes=np.zeros((len(boxes), 10), np.int64),
        relationships=np.array(relations, np.int32),
        predicates=np.array(predicates, np.int32)[:, None],
        **{f'img_to_{k}': np.array(v, np.int32) for k, v in index.items()},
    )
    arrays.update(changes)
    with h5py.File(folder / 'vg.h5', 'w') as file:
        for key, value in arrays.items():
            if value is not None:
                file[key] = value
    dicts = dict(
        label_to_idx=LABELS,
        idx_to_label={str(v): k for k, v in LABELS.items()},
        predicate_to_idx=PREDICATES,
        idx_to_predicate={str(v): k for k, v in PREDICATES.items()},
        object_count={},
        attribute_to_idx={'red': 1},
    )
    (folder / 'dicts.json').write_text(json.dumps(dicts))
    images = [dict(image_id=row[0], width=row[1][0], height=row[1][1], url='u') for row in rows]
    # The missing images stand in the middle of image_data.json, where the h5 file has no row.
    images[2:2] = [dict(image_id=i, width=10, height=10, url='u') for i in extra_images]
    (folder / 'image_data.json').write_text(json.dumps(images))
    return arrays


def arguments(folder, *extra):
    return [
        *('--h5', str(folder / 'vg.h5'), '--dicts', str(folder / 'dicts.json')),
        *('--image-data', str(folder / 'image_data.json'), '--out', str(folder / 'out'), *extra),
    ]


@pytest.fixture
def convert(converter, tmp_path):
    return lambda *extra: converter('vg150', arguments(tmp_path, *extra))


def test_small_data_set_is_converted(convert, tmp_path, graphs):
    write_files(tmp_path)
    convert('--num-val', '1')
    val, train, test = (graphs(tmp_path / f'out/{s}.json') for s in ('val', 'train', 'test'))
    # Validation: the first of those that have relations.
    assert val == {
        '1.jpg': dict(
            size=(1024, 512),
            boxes=[('airplane', 70, 80, 60, 40), ('boy', 250, 150, 100, 100)],
            relations=[(('airplane', 70, 80, 60, 40), 'above', ('boy', 250, 150, 100, 100))],
        )
    }
    boy, plane, animal = (
        ('boy', 15, 25, 10, 10),
        ('airplane', 20, 22.5, 20, 15),
        ('animal', 247.5, 122.5, 5, 5),
    )
    assert train['1593.jpg'] == dict(
        size=(512, 256),
        boxes=[boy, plane, animal],
        relations=[
            (plane, 'on', boy),
            (plane, 'on', boy),
            (plane, 'above', boy),
            (animal, 'on', plane),
        ],
    )
    assert list(train) == ['1593.jpg', '8.jpg']
    assert train['8.jpg']['boxes'][0] == ('airplane', 0, 0, 799, 468.75)
    # Clipped to the last pixel on the right.
    assert test['9.jpg']['boxes'][0] == ('animal', 950, 70, 73, 60)
    # The odd size of 9 leaves half a pixel, which is cut off: 500 - 4.5 is 495.
    assert test['9.jpg']['boxes'][1] == ('airplane', 495, 495, 9, 9)
    assert list(test) == ['9.jpg']
    content = json.loads((tmp_path / 'out/train.json').read_text())
    assert content['info']['convention'] == 'vg150'
    assert [c['name'] for c in content['categories']] == ['airplane', 'animal', 'boy']
    assert [image['id'] for image in content['images']] == [1593, 8]


def test_the_data_set_reads_what_is_written(convert, tmp_path):
    pytest.importorskip('mmdet')
    from gclip_mm.scene_graph.datasets import SceneGraphDataset

    write_files(tmp_path)
    convert('--num-val', '1')
    dataset = SceneGraphDataset(ann_file=str(tmp_path / 'out/train.json'), data_prefix=dict(img=''))
    assert dataset.metainfo['predicates'] == ('above', 'on')
    assert dataset.metainfo['convention'] == 'vg150'
    assert [len(dataset.get_data_info(i)['relations']) for i in range(2)] == [4, 1]
    assert dataset.get_data_info(0)['img_path'] == '1593.jpg'


def test_keep_empty_is_for_training_only(convert, tmp_path, graphs):
    write_files(tmp_path)
    convert('--num-val', '1', '--keep-empty')
    assert list(graphs(tmp_path / 'out/train.json')) == ['2.jpg', '1593.jpg', '8.jpg']
    assert list(graphs(tmp_path / 'out/val.json')) == ['1.jpg']
    assert list(graphs(tmp_path / 'out/test.json')) == ['9.jpg']


def test_overlapping_only_is_for_training_only(convert, tmp_path, graphs):
    write_files(tmp_path)
    convert('--num-val', '1', '--overlapping-only')
    train = graphs(tmp_path / 'out/train.json')
    assert [r[1] for r in train['1593.jpg']['relations']] == ['on', 'on', 'above']
    # The boxes of image 1 do not overlap, but validation is left as it is.
    assert len(graphs(tmp_path / 'out/val.json')['1.jpg']['relations']) == 1


def test_boxes_that_share_an_edge_overlap_as_in_scene_graph_benchmark(convert, tmp_path, graphs):
    """Its IoU includes the last pixel and is computed before scaling and clipping."""
    boxes = [(1, 10, 10, 20, 20), (2, 30, 10, 20, 20), (3, 61, 10, 40, 20), (3, 52, 10, 21, 20)]
    # x from 0 to 20, from 20 to 40, from 41 to 81, and from 41 (41.5, cut off) to 62.
    relations = [(0, 1, 1), (1, 2, 2), (1, 3, 1), (2, 3, 2)]
    row = (11, (100, 50), 0, boxes, relations)
    write_files(tmp_path, [*ROWS, row])
    convert('--num-val', '1', '--overlapping-only')
    found = graphs(tmp_path / 'out/train.json')['11.jpg']['relations']
    assert [(s[0], predicate, o[0]) for s, predicate, o in found] == [
        ('airplane', 'above', 'animal'),
        ('boy', 'on', 'boy'),
    ]


def test_sizes_can_come_from_the_images(convert, tmp_path, graphs):
    write_files(tmp_path)
    (tmp_path / 'jpg').mkdir()
    for row in ROWS:
        Image.new('RGB', row[1]).save(tmp_path / 'jpg' / f'{row[0]}.jpg')
    Image.new('RGB', (256, 128)).save(tmp_path / 'jpg/1593.jpg')  # image_data.json is wrong here
    convert('--num-val', '1', '--images', str(tmp_path / 'jpg'))
    image = graphs(tmp_path / 'out/train.json')['1593.jpg']
    assert image['size'] == (256, 128)
    assert image['boxes'][1] == ('airplane', 10, 11.25, 10, 7.5)
    (tmp_path / 'jpg/8.jpg').unlink()
    with pytest.raises(FileNotFoundError, match=r'8\.jpg does not exist'):
        convert('--num-val', '1', '--images', str(tmp_path / 'jpg'), '--overwrite')


def test_existing_files_are_not_overwritten(convert, tmp_path):
    write_files(tmp_path)
    convert('--num-val', '1')
    before = (tmp_path / 'out/train.json').read_bytes()
    with pytest.raises(FileExistsError, match='--overwrite'):
        convert('--num-val', '2')
    assert (tmp_path / 'out/train.json').read_bytes() == before
    convert('--num-val', '2', '--overwrite')
    assert (tmp_path / 'out/train.json').read_bytes() != before
    assert sorted(p.name for p in (tmp_path / 'out').iterdir()) == [
        'test.json',
        'train.json',
        'val.json',
    ]


def at(key, row, value):
    """Arrays with one value changed."""

    def change(arrays):
        array = arrays[key].copy()
        array[row] = value
        return {key: array}

    return change


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda a: dict(predicates=None), "has no array 'predicates'"),
        (lambda a: dict(boxes_1024=None), "has no array 'boxes_1024'"),
        (lambda a: dict(labels=a['labels'][:-2]), r'10 labels but boxes_1024 of shape \(12, 4\)'),
        (lambda a: dict(relationships=a['relationships'][:-1]), '7 predicates but relationships'),
        (lambda a: dict(split=a['split'][:-1]), 'differ in length'),
        (at('split', 0, 1), r'split must be 0 \(train\) or 2 \(test\)'),
        (at('img_to_last_box', 0, 99), 'row 0 has img_to_first_box=0, img_to_last_box=99'),
        (at('img_to_last_rel', 0, -1), 'row 0 has img_to_first_rel=0, img_to_last_rel=-1'),
        (at('img_to_first_rel', 2, -2), 'row 2 has img_to_first_rel=-2'),
        (at('boxes_1024', (0, 2), 0), 'a box has no area'),
        (at('relationships', (1, 0), 0), r'row 2: 1593.jpg: subjects and objects must be in \[0'),
        (at('relationships', (1, 1), 9), r'row 2: 1593.jpg: subjects and objects must be in \[0'),
        (at('labels', (0, 0), 4), r'row 0: 1.jpg: labels must be in \[0, 3\), got 2..3'),
        (at('predicates', (1, 0), 0), r'row 2: 1593.jpg: predicates must be in \[0, 2\), got -1'),
    ],
)
def test_corrupt_arrays_are_named(convert, tmp_path, change, message):
    write_files(tmp_path, **change(write_files(tmp_path)))
    with pytest.raises(ValueError, match=message):
        convert('--num-val', '1')
    assert not (tmp_path / 'out').exists()


def test_truncated_files_are_named(convert, tmp_path):
    for name, message in (
        ('vg.h5', r'vg\.h5 is not a readable HDF5 file, or cut off'),
        ('dicts.json', r'dicts\.json is not valid JSON'),
        ('image_data.json', r'image_data\.json is not valid JSON'),
    ):
        write_files(tmp_path)
        data = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(data[: len(data) // 2])
        with pytest.raises(ValueError, match=message):
            convert()
        (tmp_path / name).write_bytes(b'')
        with pytest.raises(ValueError, match=message):
            convert()
        (tmp_path / name).unlink()
        with pytest.raises(FileNotFoundError, match=name):
            convert()
    assert not (tmp_path / 'out').exists()


def test_files_that_do_not_belong_together(convert, tmp_path):
    write_files(tmp_path, extra_images=(1592, 1722, 4616, 4618))
    with pytest.raises(ValueError, match='8 images besides the missing ones.*has 7 rows'):
        convert()
    write_files(tmp_path)
    (tmp_path / 'dicts.json').write_text(json.dumps(dict(label_to_idx={'a': 1, 'b': 3})))
    with pytest.raises(ValueError, match=r"indices in 'label_to_idx' are not 1\.\.2"):
        convert()
    (tmp_path / 'dicts.json').write_text(json.dumps(dict(label_to_idx=LABELS)))
    with pytest.raises(ValueError, match="has no 'predicate_to_idx'"):
        convert()


def test_a_split_without_images_is_an_error(convert, tmp_path):
    write_files(tmp_path)
    with pytest.raises(ValueError, match='no image is left for train'):
        convert()  # 5000 for validation leave nothing


def test_command_line(tmp_path):
    write_files(tmp_path)
    tool = Path(__file__).resolve().parents[3] / 'tools' / 'dataset_converters' / 'vg150.py'
    run = subprocess.run(
        [sys.executable, tool, *arguments(tmp_path, '--num-val', '1')],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert run.returncode == 0, run.stderr
    assert 'train.json: 2 images, 5 boxes, 5 relations' in run.stdout
    assert '1 boxes clipped to the image' in run.stdout
    assert 'image/s' in run.stderr  # progress
