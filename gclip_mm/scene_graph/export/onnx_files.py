"""Writes a trained model as two ONNX files, and compares them with PyTorch."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..models.detectors import SceneGraphRCNN
from .graphs import DetectorGraph, RelationGraph
from .runtime import DETECTOR_FILE, METADATA_KEY, RELATION_FILE, import_onnxruntime

#: Height and width of the pictures, and number of objects, on which ONNX is compared.
CHECKS = ((128, 160, 7), (211, 97, 3), (90, 90, 1))
#: Size of the picture and number of objects with which the graphs are traced.
_TRACED = (192, 256, 5)


def check_exportable(model: nn.Module) -> SceneGraphRCNN:
    """The model, if its parts can be exported.

    Raises:
        ValueError: It is no ``SceneGraphRCNN``, or a setting has no equal in the exported graph.
    """
    if not isinstance(model, SceneGraphRCNN):
        raise ValueError(
            f'export-onnx needs a model of type SceneGraphRCNN, got {type(model).__name__}'
        )
    if model.protocol.has_boxes:
        return model
    cfg: Any = model.test_cfg
    for name, nms in (('rpn', cfg.rpn.nms), ('rcnn', cfg.rcnn.nms)):
        if nms.get('type', 'nms') != 'nms':
            raise ValueError(
                f"test_cfg.{name}.nms.type must be 'nms' to be exported, got {nms['type']!r}"
            )
    return model


def export(model: Any, folder: Path, metadata: dict[str, Any], opset: int = 17) -> dict[str, Path]:
    """Write ``detector.onnx`` and ``relation_head.onnx``.

    Args:
        model: A ``SceneGraphRCNN`` with its trained weights.
        folder: To write to; created if needed.
        metadata: Kept as JSON in the files, for :class:`.runtime.OnnxSceneGraph`.
        opset: Version of ONNX's operators, at least 16.

    Returns:
        Paths of both files.

    Raises:
        ImportError: ``onnx`` is not installed.
        ValueError: The model cannot be exported.
    """
    try:
        import onnx
    except ImportError as error:
        raise ImportError('export needs ONNX: pip install onnx onnxruntime') from error
    model = check_exportable(model)
    model.eval()
    folder.mkdir(parents=True, exist_ok=True)
    image, size, boxes, labels = _example(model, *_TRACED)
    files = {'detector': folder / DETECTOR_FILE, 'relation_head': folder / RELATION_FILE}
    with torch.no_grad(), _tracing():
        found = DetectorGraph(model)(image)
        feats = found if model.protocol.has_boxes else found[:-1]
        levels = [f'feat{level}' for level in range(len(feats))]
        sizes = {name: {2: f'{name}_height', 3: f'{name}_width'} for name in levels}
        torch.onnx.export(
            DetectorGraph(model),
            (image,),
            str(files['detector']),
            dynamo=False,
            opset_version=opset,
            input_names=['image'],
            output_names=levels if model.protocol.has_boxes else [*levels, 'boxes'],
            dynamic_axes={'image': {2: 'height', 3: 'width'}, 'boxes': {0: 'objects'}, **sizes},
        )
        given = ['labels'] if model.protocol.has_labels else []
        outputs = ['object_scores', 'pairs', 'predicate_scores']
        torch.onnx.export(
            RelationGraph(model),
            (size, boxes, *([labels] if given else []), *feats),
            str(files['relation_head']),
            dynamo=False,
            opset_version=opset,
            input_names=['size', 'boxes', *given, *levels],
            output_names=outputs + (['scene_scores'] if model.scene_head is not None else []),
            dynamic_axes={
                'boxes': {0: 'objects'},
                'labels': {0: 'objects'},
                'object_scores': {0: 'objects'},
                'pairs': {0: 'pairs'},
                'predicate_scores': {0: 'pairs'},
                **sizes,
            },
        )
    for path in files.values():
        content = onnx.load(str(path))
        onnx.checker.check_model(content)
        onnx.helper.set_model_props(content, {METADATA_KEY: json.dumps(metadata)})
        onnx.save(content, str(path))
    return files


def compare(model: Any, folder: Path) -> list[dict[str, float]]:
    """Largest difference between ONNX Runtime and PyTorch, for each size of :data:`CHECKS`.

    Boxes and labels are drawn at random, so that the relation head is compared also where a
    detector finds nothing on the random picture.

    Returns:
        For each size, the largest absolute difference of ``features``, ``boxes`` (SGDet),
        ``object_scores``, ``predicate_scores`` and ``scene_scores``.

    Raises:
        ValueError: The outputs differ in their shapes or in ``pairs``.
    """
    ort = import_onnxruntime()
    model = check_exportable(model)
    model.eval()
    detector, head = (
        ort.InferenceSession(str(folder / name), providers=['CPUExecutionProvider'])
        for name in (DETECTOR_FILE, RELATION_FILE)
    )
    results = []
    for case in CHECKS:
        image, size, boxes, labels = _example(model, *case)
        with torch.no_grad():
            found = DetectorGraph(model)(image)
            feats = found if model.protocol.has_boxes else found[:-1]
            given = [labels] if model.protocol.has_labels else []
            expected = RelationGraph(model)(size, boxes, *given, *feats)
        got = detector.run(None, {'image': image.numpy()})
        result = {'features': _difference(got[: len(feats)], feats, 'the feature maps')}
        if not model.protocol.has_boxes:
            result['boxes'] = _box_difference(got[-1], found[-1].numpy())
        inputs = zip(head.get_inputs(), (size, boxes, *given, *feats), strict=True)
        got = head.run(None, {entry.name: value.numpy() for entry, value in inputs})
        names = [entry.name for entry in head.get_outputs()]
        for name, ours, theirs in zip(names, got, expected, strict=True):
            difference = _difference([ours], [theirs], name)
            if name != 'pairs':
                result[name] = difference
            elif difference:
                raise ValueError('ONNX Runtime pairs other objects than PyTorch')
        results.append(result)
    return results


def _difference(ours: Sequence[np.ndarray], theirs: Sequence[Tensor], what: str) -> float:
    """Largest absolute difference of some arrays; their shapes must be equal."""
    most = 0.0
    for a, b in zip(ours, theirs, strict=True):
        if a.shape != tuple(b.shape):
            raise ValueError(f'ONNX Runtime gives {what} of shape {a.shape}, not {tuple(b.shape)}')
        if a.size:
            most = max(most, float(np.abs(a.astype(np.float64) - b.double().numpy()).max()))
    return most


def _box_difference(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Largest distance, in pixels, of a box (N, 4) from the nearest of the other detector.

    Not by position: detections of equal score may change places.
    """
    if len(ours) != len(theirs):
        raise ValueError(f'ONNX Runtime finds {len(ours)} objects, PyTorch {len(theirs)}')
    if not len(ours):
        return 0.0
    apart = np.abs(ours[:, None].astype(np.float64) - theirs[None]).max(axis=2)
    return float(max(apart.min(axis=0).max(), apart.min(axis=1).max()))


def _example(model: SceneGraphRCNN, height: int, width: int, objects: int) -> tuple[Tensor, ...]:
    """A random picture, its size, and random boxes and labels; the same for the same arguments."""
    rng = np.random.default_rng(0)
    image = rng.uniform(0, 255, (1, 3, height, width))
    start = rng.uniform(0, 0.6, (objects, 2)) * (width, height)
    extent = rng.uniform(0.05, 0.4, (objects, 2)) * (width, height)
    labels = rng.integers(model.relation_head.num_classes, size=objects)
    return (
        torch.from_numpy(image).float(),
        torch.tensor([height, width], dtype=torch.float32),
        torch.from_numpy(np.hstack((start, start + extent))).float(),
        torch.from_numpy(labels),
    )


@contextmanager
def _tracing() -> Iterator[None]:
    """Without the warnings of the tracer."""
    with warnings.catch_warnings():
        # The graphs have no branch on sizes; compare() shows that they hold for others.
        warnings.filterwarnings('ignore', category=torch.jit.TracerWarning)
        warnings.filterwarnings('ignore', message='.*legacy TorchScript.*')
        warnings.filterwarnings('ignore', category=UserWarning, module='torch.onnx')
        yield
