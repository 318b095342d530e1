"""A broken image or annotation ends a training in one line that names the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from mmengine.config import Config
from mmengine.dataset.base_dataset import Compose
from mmengine.registry import TRANSFORMS
from mmengine.runner import Runner

import gclip_mm.engine  # noqa: F401
from gclip_mm.cli.data_errors import explain_bad_data
from gclip_mm.cli.launch import explain_missing_data
from gclip_mm.engine.configs import LaunchError

pytest.importorskip('mmdet.datasets')

STOCK = Compose.__call__
PIPELINE = (
    dict(type='LoadImageFromFile'),
    dict(type='mmdet.LoadAnnotations', with_bbox=True),
    dict(type='mmdet.PackDetInputs'),
)


@TRANSFORMS.register_module()
class FaultyTransform:
    """A transform with a mistake in its code, or one that fails for one image."""

    def __init__(self, error: str) -> None:
        self.error = {'TypeError': TypeError, 'cv2': cv2.error, 'LaunchError': LaunchError}[error]

    def __call__(self, results: dict) -> dict:
        raise self.error('deep inside')


def write_data(folder: Path, count: int = 4) -> None:
    """A COCO data set of small images with one box each."""
    for k in range(count):
        cv2.imwrite(str(folder / f'{k}.png'), np.full((8, 8, 3), 40 * k, np.uint8))
    images = [dict(id=k, file_name=f'{k}.png', width=8, height=8) for k in range(count)]
    box = dict(category_id=1, bbox=[1, 1, 4, 4], area=16, iscrowd=0)
    boxes = [dict(box, id=k, image_id=k) for k in range(count)]
    content = dict(images=images, annotations=boxes, categories=[dict(id=1, name='a')])
    (folder / 'ann.json').write_text(json.dumps(content))


def read_all(folder: Path, workers: int = 0, pipeline: Any = PIPELINE, **dataset: Any) -> int:
    """Read the whole data set as a training does; returns the number of batches."""
    options = dict(
        type='mmdet.CocoDataset',
        data_root=str(folder),
        ann_file='ann.json',
        data_prefix=dict(img=''),
        metainfo=dict(classes=('a',)),
        pipeline=list(pipeline),
    )
    loader = dict(
        batch_size=2,
        num_workers=workers,
        dataset={**options, **dataset},
        sampler=dict(type='DefaultSampler', shuffle=False),
        collate_fn=dict(type='pseudo_collate'),
    )
    cfg = Config(dict(train_dataloader=loader))
    with explain_bad_data(), explain_missing_data(cfg):
        return len(list(Runner.build_dataloader(cfg.train_dataloader, seed=0)))


def line_of(*args: Any, **kwargs: Any) -> str:
    """The message; always one line."""
    with pytest.raises(LaunchError) as caught:
        read_all(*args, **kwargs)
    message = str(caught.value)
    assert len(message.splitlines()) == 1 and 'Traceback' not in message
    assert Compose.__call__ is STOCK
    return message


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_data(tmp_path)
    return tmp_path


@pytest.mark.parametrize('workers', [0, 2])
def test_sound_data_are_read(data, workers):
    assert read_all(data, workers) == 2
    assert Compose.__call__ is STOCK


@pytest.mark.parametrize('workers', [0, 2])
@pytest.mark.parametrize('content', [b'', b'not an image', b'\x89PNG\r\n\x1a\n'])
def test_broken_image_is_named(data, content, workers):
    (data / '2.png').write_bytes(content)
    message = line_of(data, workers)
    assert message.startswith(
        f'data file {str(data / "2.png")!r} cannot be used: LoadImageFromFile'
    )


@pytest.mark.parametrize('workers', [0, 2])
def test_missing_image_is_named(data, workers):
    (data / '2.png').unlink()
    assert str(data / '2.png') in line_of(data, workers)


@pytest.mark.parametrize('workers', [0, 2])
def test_broken_boxes_of_an_image_are_named(data, workers):
    content = json.loads((data / 'ann.json').read_text())
    for k, annotation in enumerate(content['annotations']):
        annotation['segmentation'] = [7] if k == 3 else [[1, 1, 4, 1, 4, 4]]
    (data / 'ann.json').write_text(json.dumps(content))
    pipeline = list(PIPELINE)
    pipeline[1] = dict(type='mmdet.LoadAnnotations', with_bbox=True, with_mask=True)
    message = line_of(data, workers, pipeline)
    assert f'{str(data / "3.png")!r} cannot be used: LoadAnnotations' in message


def test_image_of_a_mixed_sample_is_named(data):
    """Mosaic loads three more images within the pipeline of the first."""
    (data / '3.png').write_bytes(b'')
    inner = dict(
        type='mmdet.CocoDataset',
        data_root=str(data),
        ann_file='ann.json',
        data_prefix=dict(img=''),
        metainfo=dict(classes=('a',)),
        pipeline=list(PIPELINE[:2]),
    )
    with pytest.raises(LaunchError, match=r"3\.png' cannot be used"), explain_bad_data():
        dataset = Runner.build_dataloader(
            dict(
                batch_size=1,
                num_workers=0,
                dataset=dict(
                    type='mmdet.MultiImageMixDataset',
                    dataset=inner,
                    pipeline=[dict(type='mmdet.Mosaic', img_scale=(8, 8))],
                ),
                sampler=dict(type='DefaultSampler', shuffle=False),
            )
        ).dataset
        list(dataset)


@pytest.mark.parametrize('content', ['', '{"images": [', '{"images": 3}', '[]'])
def test_broken_annotation_file_is_named(data, content):
    (data / 'ann.json').write_text(content)
    assert f'data file {str(data / "ann.json")!r} cannot be used: ' in line_of(data)


def test_broken_annotation_of_one_box_names_the_file(data):
    content = json.loads((data / 'ann.json').read_text())
    content['annotations'][1]['bbox'] = [1, 2]
    (data / 'ann.json').write_text(json.dumps(content))
    message = line_of(data)
    assert str(data / 'ann.json') in message and 'ValueError' in message
    assert f"image '{data / '1.png'}'" in message


def test_broken_xml_file_is_named(data):
    (data / 'Annotations').mkdir()
    (data / 'Annotations' / '0.xml').write_text('<annotation><size>')
    (data / 'ids.txt').write_text('0\n')
    message = line_of(
        data,
        type='mmdet.XMLDataset',
        ann_file='ids.txt',
        data_prefix=dict(sub_data_root=''),
    )
    assert f'{str(data / "Annotations" / "0.xml")!r} cannot be used: XMLDataset' in message
    assert 'ParseError' in message


def test_missing_folder_names_the_key_of_the_config(tmp_path):
    assert 'train_dataloader.dataset.data_root' in line_of(tmp_path / 'gone')


@pytest.mark.parametrize('workers', [0, 2])
def test_error_in_code_keeps_its_traceback(data, workers):
    pipeline = (*PIPELINE, dict(type='FaultyTransform', error='TypeError'))
    with pytest.raises(TypeError, match='deep inside'):
        read_all(data, workers, pipeline)
    assert Compose.__call__ is STOCK


def test_error_of_opencv_names_image_and_transform(data):
    message = line_of(data, 0, (*PIPELINE, dict(type='FaultyTransform', error='cv2')))
    assert f'{str(data / "0.png")!r} cannot be used: FaultyTransform' in message


def test_other_errors_pass_unchanged():
    for error in (LaunchError('as it is'), ValueError('of the model')):
        with pytest.raises(type(error), match=str(error)), explain_bad_data():
            raise error
