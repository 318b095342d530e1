"""PSG from a small psg.json in the format of the real one."""

import copy
import json

import pytest

CONTENT = dict(
    thing_classes=['person', 'dog'],
    stuff_classes=['sky', 'grass'],
    predicate_classes=['over', 'on', 'holding'],
    test_image_ids=['107339', '999'],
    data=[
        dict(
            image_id='107902',
            coco_image_id='34',
            file_name='train2017/000000000034.jpg',
            pan_seg_file_name='panoptic_train2017/000000000034.png',
            width=640,
            height=425,
            segments_info=[
                dict(id=1, category_id=1, iscrowd=0, isthing=1, area=100),
                dict(id=2, category_id=3, iscrowd=0, isthing=0, area=200),
                dict(id=3, category_id=0, iscrowd=1, isthing=1, area=30),
            ],
            annotations=[
                dict(bbox=[1, 20, 442, 399], bbox_mode=0, category_id=1),
                dict(bbox=[0, 0, 640, 425.5], bbox_mode=0, category_id=3),
                dict(bbox=[10, 20, 30, 40], bbox_mode=1, category_id=0),
            ],
            relations=[[0, 1, 1], [2, 0, 2], [0, 1, 1], [0, 1, 0]],
        ),
        dict(
            image_id='107903',
            file_name='train2017/35.jpg',
            pan_seg_file_name='',
            width=10,
            height=10,
            segments_info=[],
            annotations=[],
            relations=[],
        ),
        dict(
            image_id='107339',
            file_name='val2017/36.jpg',
            pan_seg_file_name='',
            width=100,
            height=100,
            segments_info=[
                dict(id=1, category_id=0, iscrowd=0, isthing=1, area=1),
                dict(id=2, category_id=2, iscrowd=0, isthing=0, area=1),
            ],
            annotations=[
                dict(bbox=[0, 0, 50, 50], bbox_mode=0, category_id=0),
                dict(bbox=[0, 0, 100, 20], bbox_mode=0, category_id=2),
            ],
            relations=[[1, 0, 0]],
        ),
    ],
)


@pytest.fixture
def convert(converter, tmp_path):
    def run(content=CONTENT, *extra):
        text = content if isinstance(content, str) else json.dumps(content)
        (tmp_path / 'psg.json').write_text(text)
        args = ['--psg', str(tmp_path / 'psg.json'), '--out', str(tmp_path / 'out'), *extra]
        converter('psg', args)

    return run


def test_small_data_set_is_converted(convert, tmp_path, graphs, capsys):
    convert()
    train, test = (graphs(tmp_path / f'out/{split}.json') for split in ('train', 'test'))
    dog, grass = ('dog', 1, 20, 441, 379), ('grass', 0, 0, 640, 425)
    person = ('person', 10, 20, 30, 40)
    assert train == {
        'train2017/000000000034.jpg': dict(
            size=(640, 425),
            boxes=[dog, grass, person],
            relations=[(dog, 'on', grass), (person, 'holding', dog), (dog, 'over', grass)],
        )
    }
    assert list(test) == ['val2017/36.jpg']
    assert test['val2017/36.jpg']['relations'] == [
        (('sky', 0, 0, 100, 20), 'over', ('person', 0, 0, 50, 50))
    ]
    content = json.loads((tmp_path / 'out/train.json').read_text())
    assert content['info']['convention'] == 'psg'
    assert [c['isthing'] for c in content['categories']] == [1, 1, 0, 0]
    assert [image['id'] for image in content['images']] == [107902]
    assert not any(a['iscrowd'] for a in content['annotations'])
    output = capsys.readouterr().out
    assert '1 relations were there twice' in output
    assert '1 of the test_image_ids are not in the data' in output


def test_non_numeric_ids_are_renumbered(convert, tmp_path):
    content = copy.deepcopy(CONTENT)
    content['data'][0]['image_id'] = 'a34'
    convert(content)
    written = json.loads((tmp_path / 'out/train.json').read_text())
    assert [image['id'] for image in written['images']] == [1]


def edited(path, value):
    content = copy.deepcopy(CONTENT)
    target = content
    for key in path[:-1]:
        target = target[key]
    if value is ...:
        del target[path[-1]]
    else:
        target[path[-1]] = value
    return content


IMAGE = ['data', 0]


@pytest.mark.parametrize(
    ('path', 'value', 'message'),
    [
        (['predicate_classes'], ..., "has no list 'predicate_classes'"),
        (['data'], {}, "has no list 'data'"),
        ([*IMAGE, 'relations'], ..., r"data\[0\] has no 'relations'"),
        ([*IMAGE, 'image_id'], '107339', "image '107339' is there twice"),
        ([*IMAGE, 'relations', 0], [0, 3, 1], r"image '107902'.*subjects and objects"),
        ([*IMAGE, 'relations', 0], [0, 1, 3], r'predicates must be in \[0, 3\)'),
        ([*IMAGE, 'relations', 0], [0, 1], r'is not \[subject, object, predicate\]'),
        ([*IMAGE, 'annotations', 0, 'category_id'], 0, 'different categories'),
        ([*IMAGE, 'segments_info', 0, 'isthing'], 0, 'different categories'),
        ([*IMAGE, 'annotations', 0, 'bbox'], ..., "107902.*KeyError.*'bbox'"),
        ([*IMAGE, 'annotations', 0, 'bbox'], [1, 2, 3], "image '107902'.*unpack"),
        ([*IMAGE, 'annotations', 0, 'bbox_mode'], 3, 'bbox_mode 3, which is not 0 or 1'),
        ([*IMAGE, 'segments_info'], [], '3 annotations but 0 segments'),
        ([*IMAGE, 'width'], 0, 'size of the image is 0 x 425'),
        (['test_image_ids'], [], 'has no test image with relations'),
    ],
)
def test_corrupt_files_are_named(convert, tmp_path, path, value, message):
    with pytest.raises(ValueError, match=message):
        convert(edited(path, value))
    assert not (tmp_path / 'out').exists()


def test_truncated_file_is_an_error(convert, tmp_path):
    text = json.dumps(CONTENT)
    for broken in (text[: len(text) // 2], ''):
        with pytest.raises(ValueError, match=r'psg\.json is not valid JSON'):
            convert(broken)
    with pytest.raises(ValueError, match='must hold an object, not a list'):
        convert('[]')


def test_existing_files_are_not_overwritten(convert):
    convert()
    with pytest.raises(FileExistsError, match='--overwrite'):
        convert()
    convert(CONTENT, '--overwrite')
