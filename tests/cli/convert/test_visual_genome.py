"""Visual Genome's relationships from small files in the formats of its releases."""

import copy
import json

import pytest


def obj(number, name, box=(0, 0, 10, 10), key='name'):
    x, y, w, h = box
    value = name if key == 'name' else [name]
    return {'object_id': number, key: value, 'x': x, 'y': y, 'w': w, 'h': h, 'synsets': []}


def rel(subject, predicate, object_):
    return dict(relationship_id=1, predicate=predicate, subject=subject, object=object_)


MAN, HAT, DOG = obj(1, 'Man', (5, 6, 30, 40)), obj(2, 'hat', (8, 6, 10, 5)), obj(3, 'rare dog')
IMAGES = [
    dict(
        image_id=11,
        relationships=[
            rel(MAN, 'WEARING', HAT),
            rel(MAN, 'wears', HAT),  # an alias of "wearing"
            rel(DOG, 'near', MAN),
        ],
    ),
    dict(image_id=12, relationships=[rel(obj(4, 'guy', key='names'), 'On ', obj(5, ' hat'))]),
    dict(image_id=13, relationships=[rel(obj(6, 'man'), 'on', obj(7, 'hat'))]),
    dict(image_id=14, relationships=[rel(obj(8, 'man'), 'beside', obj(9, 'tree'))]),
    dict(image_id=15, relationships=[]),
]


@pytest.fixture
def convert(converter, tmp_path):
    def run(*extra, images=IMAGES, sizes=(11, 12, 13, 14, 15)):
        data = [dict(image_id=i, width=100, height=80) for i in sizes]
        for name, value in (('relationships', images), ('image_data', data)):
            (tmp_path / f'{name}.json').write_text(json.dumps(value))
        (tmp_path / 'objects.txt').write_text('man,guy,fellow\nhat\n')
        (tmp_path / 'predicates.txt').write_text('wearing,wears\n')
        converter(
            'visual_genome',
            [
                *('--relationships', f'{tmp_path}/relationships.json'),
                *('--image-data', f'{tmp_path}/image_data.json', '--out', f'{tmp_path}/out'),
                *('--object-alias', f'{tmp_path}/objects.txt'),
                *('--predicate-alias', f'{tmp_path}/predicates.txt'),
                *('--num-classes', '2', '--num-predicates', '2', '--num-val', '1', *extra),
            ],
        )

    return run


def test_the_most_frequent_names_are_kept(convert, tmp_path, graphs, capsys):
    convert()
    found = {k: v for s in ('train', 'val') for k, v in graphs(tmp_path / f'out/{s}.json').items()}
    man, hat = ('man', 5, 6, 30, 40), ('hat', 8, 6, 10, 5)
    assert found['11.jpg'] == dict(
        size=(100, 80), boxes=[man, hat], relations=[(man, 'wearing', hat)]
    )
    assert [r[1] for r in found['12.jpg']['relations']] == ['on']
    assert sorted(found) == ['11.jpg', '12.jpg', '13.jpg']
    content = json.loads((tmp_path / 'out/val.json').read_text())
    assert [c['name'] for c in content['categories']] == ['man', 'hat']
    assert [p['name'] for p in content['predicates']] == ['on', 'wearing']
    assert 'convention' not in content['info']
    assert '4 of 6 relations in 3 of 5 images kept' in capsys.readouterr().out


def test_names_of_a_file_replace_the_most_frequent(convert, tmp_path):
    (tmp_path / 'p.txt').write_text('Near\n\nwearing\non\n')
    (tmp_path / 'c.txt').write_text('rare  dog\nman\nhat\n')
    convert('--predicates', f'{tmp_path}/p.txt', '--classes', f'{tmp_path}/c.txt')
    content = json.loads((tmp_path / 'out/train.json').read_text())
    assert [p['name'] for p in content['predicates']] == ['near', 'wearing', 'on']
    (tmp_path / 'p.txt').write_text('flies over\n')
    with pytest.raises(ValueError, match="names 'flies over', which never occurs"):
        convert('--predicates', f'{tmp_path}/p.txt', '--overwrite')


def edited(**changes):
    images = copy.deepcopy(IMAGES)
    for path, value in changes.items():
        target = images[0]['relationships'][0]
        *keys, last = path.split('__')
        for key in keys:
            target = target[key]
        target[last] = value
    return images


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(images=edited(subject__x='left')), 'image 11.*could not convert'),
        (dict(images=edited(subject={})), 'image 11.*object_id'),
        (dict(images=edited(subject__name='', object={})), 'image 11'),
        (dict(images=[{}]), "entry 0 has no 'image_id'"),
        (dict(sizes=(11, 12)), 'has no image 13'),
        (dict(images=IMAGES[:1]), 'cannot be split'),
    ],
)
def test_corrupt_files_are_named(convert, tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        convert(**change)
    assert not (tmp_path / 'out').exists()
