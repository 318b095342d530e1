"""The converters as modules."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).resolve().parents[3] / 'tools' / 'dataset_converters'


@pytest.fixture(scope='session')
def converter():
    """Load a converter by name."""

    def load(name):
        module_name = f'dataset_converter_{name}'
        if module_name not in sys.modules:
            spec = importlib.util.spec_from_file_location(module_name, TOOLS / f'{name}.py')
            sys.modules[module_name] = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(sys.modules[module_name])
        return sys.modules[module_name]

    return load


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
