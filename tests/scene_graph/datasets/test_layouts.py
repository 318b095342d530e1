"""Files of SGG-Benchmark are read as if they were this package's own."""

from __future__ import annotations

import copy
import json

import pytest

from gclip_mm.scene_graph.datasets import RelationIndex

OWN = dict(
    images=[dict(id=7, file_name='7.jpg', width=64, height=48)],
    annotations=[
        dict(id=i, image_id=7, category_id=i, bbox=[8 * i, 0, 8, 8], area=64, iscrowd=0)
        for i in range(3)
    ],
    categories=[dict(id=i, name=n) for i, n in enumerate(('cat', 'dog', 'mat'))],
    predicates=[dict(id=1, name='near'), dict(id=2, name='on')],
    relations=[
        dict(id=4, image_id=7, subject_id=0, object_id=2, predicate_id=2),
        dict(id=5, image_id=7, subject_id=1, object_id=0, predicate_id=1),
    ],
)


def theirs(categories):
    content = copy.deepcopy(OWN)
    content['rel_annotations'] = content.pop('relations')
    del content['predicates']
    return {**content, 'rel_categories': categories}


@pytest.mark.parametrize(
    'categories',
    [
        OWN['predicates'],
        ['near', 'on'],
        ['__background__', 'near', 'on'],
        [dict(id=0, name='__background__'), *OWN['predicates']],
    ],
    ids=('dicts', 'names', 'background', 'background dict'),
)
def test_a_file_of_sgg_benchmark_equals_our_own(categories):
    own = RelationIndex(OWN, 'own', {})
    read = RelationIndex(theirs(categories), 'theirs', {})
    assert read.predicates == own.predicates == ('near', 'on')
    assert read.relations(7).tolist() == own.relations(7).tolist() == [[0, 2, 1], [1, 0, 0]]
    assert read.triplets(theirs(categories)) == {(0, 2, 1), (1, 0, 0)}


def test_the_data_set_reads_it(tmp_path):
    from gclip_mm.scene_graph.datasets import SceneGraphDataset

    (tmp_path / 'train.json').write_text(json.dumps(theirs(['near', 'on'])))
    dataset = SceneGraphDataset(
        ann_file='train.json', data_root=str(tmp_path), data_prefix=dict(img=''), pipeline=[]
    )
    assert dataset.metainfo['predicates'] == ('near', 'on')
    assert dataset.get_data_info(0)['relations'].tolist() == [[0, 2, 1], [1, 0, 0]]


def test_both_names_of_a_list_are_an_error():
    with pytest.raises(ValueError, match="both 'rel_annotations' and 'relations'"):
        RelationIndex({**theirs(['near', 'on']), 'relations': []}, 'file', {})


def test_mistakes_name_the_entry():
    with pytest.raises(ValueError, match=r"predicates\[0\] has no 'id'"):
        RelationIndex(theirs([dict(name='near')]), 'file', {})
