"""VRD from small files in its format."""

import copy
import json

import pytest
from PIL import Image


def relation(subject, predicate, object_):
    def end(label, box):
        return dict(category=label, bbox=box)

    return dict(subject=end(*subject), predicate=predicate, object=end(*object_))


PERSON, HORSE, HAT = (0, [10, 60, 20, 40]), (1, [40, 80, 5, 95]), (2, [5, 12, 22, 38])
TRAIN = {
    'a.jpg': [
        relation(PERSON, 1, HORSE),
        relation(PERSON, 0, HAT),
        relation(PERSON, 1, HORSE),  # the same again
    ],
    'empty.jpg': [],
}
TEST = {'b.jpg': [relation(HAT, 1, PERSON)]}


@pytest.fixture
def convert(converter, tmp_path):
    for split, name in (('train', 'a'), ('test', 'b')):
        folder = tmp_path / f'pictures/sg_{split}_images'
        folder.mkdir(parents=True)
        Image.new('RGB', (100, 80)).save(folder / f'{name}.jpg')

    def run(*extra, train=TRAIN, test=TEST, predicates=('wear', 'on')):
        content = dict(
            objects=['person', 'horse', 'hat'],
            predicates=predicates,
            annotations_train=train,
            annotations_test=test,
        )
        for name, value in content.items():
            (tmp_path / f'{name}.json').write_text(json.dumps(value))
        folders = ['--annotations', str(tmp_path), '--images', str(tmp_path / 'pictures')]
        converter('vrd', [*folders, '--out', str(tmp_path / 'out'), *extra])

    return run


def test_boxes_are_read_as_ymin_ymax_xmin_xmax(convert, tmp_path, graphs):
    convert()
    person, horse = ('person', 20, 10, 20, 50), ('horse', 5, 40, 90, 40)
    hat = ('hat', 22, 5, 16, 7)
    assert graphs(tmp_path / 'out/train.json') == {
        'sg_train_images/a.jpg': dict(
            size=(100, 80),
            boxes=[person, horse, hat],
            relations=[(person, 'on', horse), (person, 'wear', hat)],
        )
    }
    assert graphs(tmp_path / 'out/test.json')['sg_test_images/b.jpg']['relations'] == [
        (hat, 'on', person)
    ]
    assert json.loads((tmp_path / 'out/test.json').read_text())['info']['convention'] == 'vrd'


def test_missing_pictures_are_named_or_left_out(convert, tmp_path):
    train = {**TRAIN, 'gone.jpg': TRAIN['a.jpg']}
    with pytest.raises(FileNotFoundError, match='gone.jpg does not exist; pass --skip-missing'):
        convert(train=train)
    convert('--skip-missing', train=train)
    assert len(json.loads((tmp_path / 'out/train.json').read_text())['images']) == 1


@pytest.mark.parametrize(
    ('key', 'value', 'message'),
    [
        ('subject', {}, "picture 'a.jpg'.*'subject' must have"),
        ('object', dict(category=0, bbox=[20, 10, 0, 5]), r'must be \[ymin, ymax, xmin, xmax\]'),
        ('object', dict(category=7, bbox=[10, 20, 0, 5]), r'labels must be in \[0, 3\)'),
        ('predicate', 2, r'predicates must be in \[0, 2\)'),
        ('predicate', None, "picture 'a.jpg'"),
    ],
)
def test_corrupt_files_are_named(convert, tmp_path, key, value, message):
    train = copy.deepcopy(TRAIN)
    train['a.jpg'][0][key] = value
    with pytest.raises(ValueError, match=message):
        convert(train=train)
    assert not (tmp_path / 'out').exists()
