"""Spreadsheets of relations, with the boxes in them or in a second table."""

import json

import pytest
from PIL import Image

from gclip_mm.cli import main

BOXES = ','.join(f'{end}_{c}' for end in ('subject', 'object') for c in ('x1', 'y1', 'x2', 'y2'))
HEADER = f'image,subject,predicate,object,{BOXES}'
ROWS = [
    'a.jpg,dog,on,sofa,10,20,40,60,0,30,100,80',
    'a.jpg,cat,on,sofa,50,20,70,60,0,30,100,80',
    'a.jpg,cat,on,sofa,50,20,70,60,0,30,100,80',  # the same again
    'b.jpg,cat,beside,cat,0,0,10.5,10,20,0,30,10',
]
CAT, DOG = ('cat', 50, 20, 20, 40), ('dog', 10, 20, 30, 40)
SOFA = ('sofa', 0, 30, 100, 50)
OBJECTS = [
    'image;id;class;x1;y1;x2;y2',
    'a.jpg;1;dog;10;20;30;40',
    'a.jpg;2;sofa;0;30;100;50',
    'b.jpg;1;cat;0;0;10;10',
    'b.jpg;2;cat;20;0;10;10',
    'c.jpg;1;bird;1;2;3;4',
]
BY_ID = ['image;subject;predicate;object', 'a.jpg;1;on;2', 'b.jpg;2;beside;1']


@pytest.fixture
def convert(tmp_path):
    (tmp_path / 'photos').mkdir()
    for name in ('a', 'b', 'c'):
        Image.new('RGB', (100, 80)).save(tmp_path / f'photos/{name}.jpg')

    def run(*extra, rows=ROWS, header=HEADER, objects=None):
        lines = [header, *rows] if header else rows
        (tmp_path / 'relations.csv').write_text('\n'.join(lines) + '\n', encoding='utf-8-sig')
        if objects is not None:
            (tmp_path / 'objects.csv').write_text('\n'.join(objects) + '\n')
            extra = ('--objects', str(tmp_path / 'objects.csv'), *extra)
        arguments = ['--images', tmp_path / 'photos', '--relations', tmp_path / 'relations.csv']
        command = ['convert', 'table', *map(str, arguments), '--out', str(tmp_path / 'out')]
        return main([*command, *extra])

    return run


def test_one_table_is_converted_and_split_at_random(convert, tmp_path, graphs, capsys):
    assert convert('--json') == 0
    result = json.loads(capsys.readouterr().out)
    assert (result['num_classes'], result['num_predicates'], result['num_scenes']) == (3, 2, 0)
    assert result['categories'] == ['cat', 'dog', 'sofa']
    train, val = (graphs(tmp_path / f'out/{split}.json') for split in ('train', 'val'))
    assert not set(train) & set(val)
    found = {**train, **val}
    assert found['a.jpg'] == dict(
        size=(100, 80),
        boxes=[DOG, SOFA, CAT],
        relations=[(DOG, 'on', SOFA), (CAT, 'on', SOFA)],
    )
    left, right = ('cat', 0, 0, 10.5, 10), ('cat', 20, 0, 10, 10)
    assert found['b.jpg']['relations'] == [(left, 'beside', right)]
    contents = [json.loads((tmp_path / f'out/{s}.json').read_text()) for s in ('train', 'val')]
    assert contents[0]['predicates'] == contents[1]['predicates']


def test_two_tables_with_width_and_height_keep_photos_without_relations(convert, tmp_path, graphs):
    assert convert('--box-format', 'xywh', rows=BY_ID, header=None, objects=OBJECTS) == 0
    found = {k: v for s in ('train', 'val') for k, v in graphs(tmp_path / f'out/{s}.json').items()}
    assert found['a.jpg']['relations'] == [(DOG, 'on', SOFA)]
    left, right = ('cat', 0, 0, 10, 10), ('cat', 20, 0, 10, 10)
    assert found['b.jpg']['relations'] == [(right, 'beside', left)]
    assert found['c.jpg'] == dict(size=(100, 80), boxes=[('bird', 1, 2, 3, 4)], relations=[])


def test_columns_split_and_scene_are_kept(convert, tmp_path):
    rows = [f'{ROWS[0]},Train,home', f'{ROWS[3]},val,street']
    assert convert(rows=rows, header=f' {HEADER.title()} ,SPLIT,Scene') == 0
    train, val = (json.loads((tmp_path / f'out/{s}.json').read_text()) for s in ('train', 'val'))
    assert [s['name'] for s in train['scenes']] == ['home', 'street']
    assert [i['file_name'] for i in train['images']] == ['a.jpg']
    assert val['images'][0]['scene'] == 1


def test_a_photo_on_its_side_is_measured_as_opencv_loads_it(convert, tmp_path, graphs):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    Image.new('RGB', (80, 100)).save(tmp_path / 'photos/a.jpg', exif=exif)
    assert convert() == 0
    found = {k: v for s in ('train', 'val') for k, v in graphs(tmp_path / f'out/{s}.json').items()}
    assert found['a.jpg']['size'] == (100, 80)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(header=HEADER.replace('predicate', 'verb')), "no column 'predicate'; it has"),
        (
            dict(rows=[ROWS[0], 'a.jpg,dog,,sofa,1,2,3,4,5,6,7,8']),
            "line 3: the cell 'predicate' is",
        ),
        (dict(rows=['a.jpg,dog,on,sofa,1,2,3,4,5,6,7,8,9']), 'line 2: more than 12 cells'),
        (dict(rows=['a.jpg,dog,on,sofa,1,2,x,4,5,6,7,8']), "subject_x2 must be a number, got 'x'"),
        (dict(rows=['a.jpg,dog,on,sofa,1,2,nan,4,5,6,7,8']), 'subject_x2 must be a number'),
        (dict(rows=['a.jpg,dog,on,sofa,50,20,9,9,0,0,9,9']), 'no area; is it x, y, width, height'),
        (dict(rows=['a.jpg,dog,on,dog,0,0,9,9,0,0,9,9']), 'subject and object are the same object'),
        (
            dict(rows=[*ROWS, 'c.jpg,dog,on,sofa,0,0,200,9,0,0,9,9']),
            'c.jpg has 100 x 80 pixels, but a box',
        ),
        (dict(rows=[ROWS[0], 'd.jpg,dog,on,sofa,1,2,3,4,5,6,7,8']), 'd.jpg does not exist'),
        (dict(rows=[ROWS[0]]), '1 images cannot be split'),
        (dict(rows=[]), 'has no rows'),
        (
            dict(rows=[f'{ROWS[0]},dev'], header=f'{HEADER},split'),
            "split must be one of ('train', 'val', 'test'), got 'dev'",
        ),
        (
            dict(rows=[f'{ROWS[0]},train', f'{ROWS[1]},val'], header=f'{HEADER},split'),
            "a.jpg has split 'val' here and 'train' in an earlier row",
        ),
        (
            dict(rows=[f'{ROWS[0]},train', f'{ROWS[3]},'], header=f'{HEADER},split'),
            'b.jpg has no split',
        ),
        (
            dict(rows=[f'{ROWS[0]},train'], header=f'{HEADER},split'),
            "no photo has split 'val'",
        ),
        (dict(rows=[*BY_ID, 'a.jpg;1;on;9'], header=None, objects=OBJECTS), "has no object '9'"),
        (dict(rows=BY_ID, header=None, objects=[*OBJECTS, OBJECTS[1]]), "two objects '1'"),
    ],
    ids=lambda value: None if isinstance(value, dict) else value[:25],
)
def test_mistakes_are_named(convert, tmp_path, capsys, change, message):
    extra = ('--box-format', 'xywh') if 'objects' in change else ()
    assert convert(*extra, **change) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / 'out').exists()


def test_a_file_that_is_no_picture_is_named(convert, tmp_path, capsys):
    (tmp_path / 'photos/b.jpg').write_text('text')
    assert convert() == 1
    assert 'b.jpg cannot be read as a picture' in capsys.readouterr().err


def test_existing_files_are_not_overwritten(convert, capsys):
    assert convert() == 0
    assert convert() == 1
    assert '--overwrite' in capsys.readouterr().err
    assert convert('--overwrite') == 0
