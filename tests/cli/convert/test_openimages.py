"""Open Images relationships from small files in the official and in the processed format."""

import json

import pytest
from PIL import Image

HEADER = (
    'ImageID,LabelName1,LabelName2,XMin1,XMax1,YMin1,YMax1,XMin2,XMax2,YMin2,YMax2,RelationLabel'
)
TRAIN = [
    'a1,/m/04bcr3,/m/083vt,0.1,0.5,0.2,0.6,0.1,0.5,0.2,0.6,is',  # an attribute
    'a1,/m/01mzpv,/m/04bcr3,0.1,0.3,0.4,0.9,0.1,0.5,0.2,0.6,at',
    'a1,/m/01mzpv,/m/04bcr3,0.1,0.3,0.4,0.9,0.1,0.5,0.2,0.6,at',  # the same again
    'a1,/m/01mzpv,/m/04bcr3,0.6,0.8,0.4,0.9,0.1,0.5,0.2,0.6,under',
    'b2,/m/0342h,/m/01mzpv,0,1,0,0.5,0.25,0.75,0,1,plays',
    'c3,/m/04bcr3,/m/083vt,0.1,0.5,0.2,0.6,0.1,0.5,0.2,0.6,is',  # nothing but an attribute
]
VAL = ['d4,/m/0342h,/m/04bcr3,0.5,1,0,0.5,0.25,0.75,0,1,on']
NAMES = [
    '/m/01mzpv,Chair',
    '/m/04bcr3,Table',
    '/m/0342h,Guitar',
    '/m/0zzz,"Comma, Name"',
]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / 'images').mkdir()
    for name in ('a1', 'b2', 'c3', 'd4'):
        Image.new('RGB', (200, 100)).save(tmp_path / 'images' / f'{name}.jpg')
    return tmp_path


@pytest.fixture
def convert(converter, folder):
    def run(*extra, header=HEADER, train=TRAIN, val=VAL, names=NAMES):
        (folder / 'train.csv').write_text('\n'.join([header, *train]) + '\n')
        (folder / 'val.csv').write_text('\n'.join([header, *val]) + '\n')
        (folder / 'names.csv').write_text('\n'.join(names) + '\n')
        converter(
            'openimages',
            [
                *('csv', '--vrd', f'train={folder}/train.csv', f'val={folder}/val.csv'),
                *('--classes', f'{folder}/names.csv', '--images', f'{folder}/images'),
                *('--out', f'{folder}/out', *extra),
            ],
        )

    return run


def test_csv_is_converted(convert, folder, graphs):
    convert()
    train, val = (graphs(folder / f'out/{split}.json') for split in ('train', 'val'))
    assert list(train) == ['a1.jpg', 'b2.jpg']
    chair, other_chair = ('Chair', 20, 40, 40, 50), ('Chair', 120, 40, 40, 50)
    table = ('Table', 20, 20, 80, 40)
    assert train['a1.jpg'] == dict(
        size=(200, 100),
        boxes=[chair, table, other_chair],
        relations=[(chair, 'at', table), (other_chair, 'under', table)],
    )
    assert train['b2.jpg']['relations'] == [
        (('Guitar', 0, 0, 200, 50), 'plays', ('Chair', 50, 0, 100, 100))
    ]
    assert val['d4.jpg']['relations'] == [
        (('Guitar', 100, 0, 100, 50), 'on', ('Table', 50, 0, 100, 100))
    ]
    contents = [json.loads((folder / f'out/{s}.json').read_text()) for s in ('train', 'val')]
    for key in ('categories', 'predicates'):  # shared by the splits
        assert contents[0][key] == contents[1][key]
    assert [p['name'] for p in contents[0]['predicates']] == ['at', 'on', 'plays', 'under']
    assert contents[0]['info']['convention'] == 'openimages'


def test_column_names_of_later_releases_are_read(convert, folder, graphs):
    convert(header=HEADER.replace('RelationLabel', 'RelationshipLabel'))
    assert len(graphs(folder / 'out/train.json')) == 2


@pytest.mark.parametrize('header', ['LabelName,DisplayName', 'id,name'])
def test_descriptions_may_have_a_header(convert, folder, graphs, header):
    convert(names=[header, *NAMES])
    assert len(graphs(folder / 'out/train.json')) == 2


def test_missing_images_are_an_error_or_skipped(convert, folder, graphs, capsys):
    (folder / 'images/b2.jpg').unlink()
    with pytest.raises(FileNotFoundError, match=r'b2\.jpg does not exist; pass --skip-missing'):
        convert()
    convert('--skip-missing')
    assert list(graphs(folder / 'out/train.json')) == ['a1.jpg']
    assert '1 images left out, for their files are missing' in capsys.readouterr().out


def test_prefix_names_a_folder_per_split(convert, folder, graphs):
    for split, names in (('train', ('a1', 'b2')), ('val', ('d4',))):
        (folder / 'images' / split).mkdir()
        for name in names:
            (folder / f'images/{name}.jpg').rename(folder / f'images/{split}/{name}.jpg')
    convert('--prefix', '{split}/')
    assert list(graphs(folder / 'out/train.json')) == ['train/a1.jpg', 'train/b2.jpg']
    assert list(graphs(folder / 'out/val.json')) == ['val/d4.jpg']


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(header=HEADER.replace('YMax2,', '')), "has no column 'YMax2'"),
        (dict(header=HEADER.replace('RelationLabel', 'Label')), 'RelationLabel or RelationshipL'),
        (dict(train=[*TRAIN, 'b2,/m/0342h,/m/01mz']), r'line 8: 12 values expected; is the file'),
        (dict(train=[*TRAIN, TRAIN[1] + ',extra']), 'line 8: 12 values expected'),
        (dict(train=[TRAIN[1].replace('0.9', 'x')]), 'line 2: could not convert'),
        (dict(train=[TRAIN[1].replace('0.9', '1.9')]), r'line 2: .*is not a box within \[0, 1\]'),
        (dict(train=[TRAIN[1].replace('0.9', '0.1')]), 'is not a box within'),
        (dict(train=TRAIN[:1]), "no image with relations is left in split 'train'"),
        (dict(names=NAMES[1:]), "does not describe '/m/01mzpv'"),
        (dict(names=[*NAMES, '/m/x']), 'names.csv, line 5: expected "id,name"'),
        (dict(header=''), "has no column 'ImageID'"),
    ],
)
def test_corrupt_csv_is_named(convert, folder, change, message):
    with pytest.raises(ValueError, match=message):
        convert(**change)
    assert not (folder / 'out').exists()


def test_existing_files_are_not_overwritten(convert):
    convert()
    with pytest.raises(FileExistsError, match='--overwrite'):
        convert()
    convert('--overwrite')


def test_malformed_vrd_argument_is_rejected(converter, capsys):
    for vrd in (['train'], ['=x'], ['train=x', 'train=y']):
        args = ['json', '--categories', 'c.json', '--out', 'o', '--vrd', *vrd]
        with pytest.raises(SystemExit):
            converter('openimages', args)
        assert '--vrd wants SPLIT=FILE' in capsys.readouterr().err


ENTRIES = [
    dict(
        img_size=[200, 100],
        img_fn='a1',
        bbox=[[0, 0, 50, 60], [20, 10, 120, 90]],
        det_labels=[1, 0],
        rel=[[0, 1, 1], [0, 1, 0]],
    ),
    dict(img_size=[200, 100], img_fn='b2', bbox=[[0, 0, 5, 5]], det_labels=[1], rel=[]),
]
CATEGORIES = dict(obj=['Table', 'Chair'], rel=['at', 'under'])


@pytest.fixture
def convert_json(converter, tmp_path):
    def run(entries=ENTRIES, categories=CATEGORIES):
        text = entries if isinstance(entries, str) else json.dumps(entries)
        (tmp_path / 'anno.json').write_text(text)
        (tmp_path / 'categories.json').write_text(json.dumps(categories))
        converter(
            'openimages',
            [
                *('json', '--vrd', f'test={tmp_path}/anno.json', '--out', f'{tmp_path}/out'),
                *('--categories', f'{tmp_path}/categories.json'),
            ],
        )

    return run


def test_json_is_converted(convert_json, tmp_path, graphs, capsys):
    convert_json()
    chair, table = ('Chair', 0, 0, 50, 60), ('Table', 20, 10, 100, 80)
    assert graphs(tmp_path / 'out/test.json') == {
        'a1.jpg': dict(
            size=(200, 100),
            boxes=[chair, table],
            relations=[(chair, 'under', table), (chair, 'at', table)],
        )
    }
    assert '1 images without relations left out' in capsys.readouterr().out


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(det_labels=[1, 2]), r'entry 0: a1\.jpg: labels must be in \[0, 2\)'),
        (dict(rel=[[0, 2, 1]]), 'subjects and objects'),
        (dict(rel=[[0, 1, 2]]), 'predicates must be'),
        (dict(bbox=[[0, 0, 5, 5]]), '1 boxes but 2 labels'),
        (dict(img_size=[200]), 'entry 0'),
        (dict(img_fn=...), "entry 0 has no 'img_fn'"),
    ],
)
def test_corrupt_json_is_named(convert_json, tmp_path, change, message):
    entry = {k: v for k, v in {**ENTRIES[0], **change}.items() if v is not ...}
    with pytest.raises(ValueError, match=message):
        convert_json([entry])
    assert not (tmp_path / 'out').exists()


def test_truncated_json(convert_json):
    text = json.dumps(ENTRIES)
    with pytest.raises(ValueError, match=r'anno\.json is not valid JSON'):
        convert_json(text[: len(text) // 2])
    with pytest.raises(ValueError, match="has no list 'rel'"):
        convert_json(categories=dict(obj=['a']))


BOX_HEADER = (
    'ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf,'
    'IsDepiction,IsInside'
)
BOX_ROWS = [
    'a1,x,/m/04bcr3,1,0.1,0.5,0.2,0.6,0,0,0,0,0',  # is related too
    'a1,x,/m/04bcr3,1,0.5,1,0.5,1,0,0,1,0,0',  # a group of tables
    'a1,x,/m/0zzz,1,0.5,1,0.5,1,0,0,0,0,0',  # a class without relationships
    'a1,x,/m/0342h,1,0,0.5,0,1,0,0,0,0,0',
    'zz,x,/m/0342h,1,0,0.5,0,1,0,0,0,0,0',  # an image without relationships
]


def test_other_boxes_are_added(convert, folder, graphs):
    (folder / 'boxes.csv').write_text('\n'.join([BOX_HEADER, *BOX_ROWS]) + '\n')
    convert('--boxes', f'train={folder}/boxes.csv')
    image = graphs(folder / 'out/train.json')['a1.jpg']
    assert image['boxes'][3:] == [('Table', 100, 50, 100, 50), ('Guitar', 0, 0, 100, 100)]
    assert len(image['relations']) == 2
    content = json.loads((folder / 'out/train.json').read_text())
    assert [a['iscrowd'] for a in content['annotations']] == [0, 0, 0, 1, 0, 0, 0]


@pytest.mark.parametrize(
    ('header', 'row', 'message'),
    [
        (BOX_HEADER.replace('IsGroupOf', 'Group'), BOX_ROWS[0], "no column 'IsGroupOf'"),
        (BOX_HEADER, 'a1,x,/m/04bcr3,1,0.5,0.1,0.2,0.6,0,0,0,0,0', 'boxes.csv, line 2.*not a box'),
    ],
)
def test_corrupt_boxes_are_named(convert, folder, header, row, message):
    (folder / 'boxes.csv').write_text(f'{header}\n{row}\n')
    with pytest.raises(ValueError, match=message):
        convert('--boxes', f'train={folder}/boxes.csv')


def test_boxes_of_an_unknown_split_are_refused(convert, folder, capsys):
    with pytest.raises(SystemExit):
        convert('--boxes', f'dev={folder}/boxes.csv')
    assert "the split 'dev', which --vrd does not name" in capsys.readouterr().err
