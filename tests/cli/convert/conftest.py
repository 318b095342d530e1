"""Run a converter, and read what it wrote."""

import json
from importlib import import_module
from pathlib import Path

import pytest


@pytest.fixture(scope='session')
def converter():
    """Run a converter by name; errors are raised."""

    def run(name, arguments):
        module = import_module(f'gclip_mm.cli.convert.{name}')
        module.run(module.parse_args(arguments))

    return run


@pytest.fixture(scope='session')
def graphs():
    """What a scene-graph file says, by file name: boxes by name, and relations by name."""

    def read(path):
        content = json.loads(Path(path).read_text())
        categories = {c['id']: c['name'] for c in content['categories']}
        predicates = {p['id']: p['name'] for p in content['predicates']}
        images = {image['id']: image for image in content['images']}
        boxes = {
            a['id']: (categories[a['category_id']], *a['bbox']) for a in content['annotations']
        }
        result = {
            image['file_name']: dict(size=(image['width'], image['height']), boxes=[], relations=[])
            for image in content['images']
        }
        for a in content['annotations']:
            result[images[a['image_id']]['file_name']]['boxes'].append(boxes[a['id']])
        for r in content['relations']:
            result[images[r['image_id']]['file_name']]['relations'].append(
                (boxes[r['subject_id']], predicates[r['predicate_id']], boxes[r['object_id']])
            )
        return result

    return read
