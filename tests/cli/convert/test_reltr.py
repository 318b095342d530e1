"""RelTR's annotations from small files in their format."""

import json

import pytest


def coco(first):
    return dict(
        images=[dict(id=first, file_name=f'{first}.jpg', width=100, height=80)],
        annotations=[
            dict(id=first * 10 + k, image_id=first, category_id=c, bbox=box, area=1, iscrowd=crowd)
            for k, (c, box, crowd) in enumerate(
                [(2, [0, 0, 10, 10], 0), (1, [5, 5, 20, 20], 1), (1, [30, 30, 20, 20], 0)]
            )
        ],
        categories=[dict(id=1, name='dog'), dict(id=2, name='hat')],
    )


@pytest.fixture
def convert(converter, tmp_path):
    def run(*extra, names=('__background__', 'near', 'on'), rows=((0, 1, 2),)):
        for split, first in (('train', 7), ('val', 8)):
            (tmp_path / f'{split}.json').write_text(json.dumps(coco(first)))
        rel = dict(train={'7': rows}, val={'8': []}, test={}, rel_categories=names)
        (tmp_path / 'rel.json').write_text(json.dumps(rel))
        out = ['--out', str(tmp_path / 'out')]
        converter('reltr', ['--annotations', str(tmp_path), *out, *extra])

    return run


@pytest.mark.parametrize(
    ('names', 'predicate'), [(('__background__', 'near', 'on'), 2), (('near', 'on'), 1)]
)
def test_predicates_count_with_or_without_background(convert, tmp_path, graphs, names, predicate):
    convert('--convention', 'vg150', names=names, rows=[(0, 1, predicate)])
    hat, dog = ('hat', 0, 0, 10, 10), ('dog', 30, 30, 20, 20)
    assert graphs(tmp_path / 'out/train.json') == {
        '7.jpg': dict(size=(100, 80), boxes=[hat, dog], relations=[(hat, 'on', dog)])
    }
    assert graphs(tmp_path / 'out/val.json')['8.jpg']['relations'] == []
    content = json.loads((tmp_path / 'out/train.json').read_text())
    assert [p['name'] for p in content['predicates']] == ['near', 'on']
    assert content['info']['convention'] == 'vg150' and content['images'][0]['id'] == 7
    assert not (tmp_path / 'out/test.json').exists()


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(rows=[(0, 2, 1)]), r'train.json, image 7.*subjects and objects must be in \[0, 2\)'),
        (dict(rows=[(0, 1, 0)]), r'predicates must be in \[0, 2\)'),  # the background
        (dict(rows=[(0, 1)]), 'image 7'),
        (dict(names='near'), 'no list of names "rel_categories"'),
    ],
)
def test_corrupt_files_are_named(convert, tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        convert(**change)
    assert not (tmp_path / 'out').exists()
