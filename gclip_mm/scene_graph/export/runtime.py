"""Runs exported models with ONNX Runtime, NumPy and OpenCV; no PyTorch module takes part."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import ArrayLike

from ..boxes import box_iou

DETECTOR_FILE = 'detector.onnx'
RELATION_FILE = 'relation_head.onnx'
#: Key of the files' metadata.
METADATA_KEY = 'gclip_mm'


def import_onnxruntime() -> Any:
    """The module ``onnxruntime``.

    Raises:
        ImportError: It is not installed; the message says how to install it.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise ImportError('ONNX Runtime is missing: pip install onnx onnxruntime') from error
    return onnxruntime


class OnnxSceneGraph:
    """Predicts scene graphs from the files that ``gclip export-onnx`` writes.

    Args:
        folder: Holds ``detector.onnx`` and ``relation_head.onnx``.
        providers: Of ONNX Runtime, such as ``['CUDAExecutionProvider']``.

    Raises:
        ImportError: ``onnxruntime`` is not installed.
        FileNotFoundError: A file is missing.

    Attributes:
        metadata: ``protocol``, ``classes``, ``predicates``, ``scenes``, ``scale``,
            ``nms_iou_thr`` and ``max_relations``.

    Example:
        >>> model = OnnxSceneGraph('exported')
        >>> graph = model(cv2.imread('photo.jpg'))
        >>> graph['pairs'][0], graph['rel_scores'][0]
    """

    def __init__(self, folder: str | Path, providers: list[Any] | None = None) -> None:
        ort = import_onnxruntime()
        sessions = []
        for name in (DETECTOR_FILE, RELATION_FILE):
            path = Path(folder) / name
            if not path.is_file():
                raise FileNotFoundError(f'{path} does not exist; gclip export-onnx writes it')
            sessions.append(
                ort.InferenceSession(str(path), providers=providers or ['CPUExecutionProvider'])
            )
        self.detector, self.head = sessions
        entries = self.head.get_modelmeta().custom_metadata_map
        self.metadata: dict[str, Any] = json.loads(entries[METADATA_KEY])

    def __call__(
        self, image: np.ndarray, bboxes: ArrayLike | None = None, labels: ArrayLike | None = None
    ) -> dict[str, np.ndarray]:
        """Predict the graph of a picture.

        Args:
            image: (H, W, 3) uint8, the channels in the order of OpenCV (BGR).
            bboxes: (N, 4) xyxy in its pixels; in PredCls and SGCls.
            labels: (N,) indices of the classes; in PredCls.

        Returns:
            ``bboxes`` (n, 4) xyxy in pixels of the picture, ``labels`` (n,), ``scores`` (n,),
            ``pairs`` (M, 2) indices of subject and object, ``rel_scores`` (M, P) without "no
            relation": a prediction for
            :func:`~gclip_mm.scene_graph.evaluation.scene_graph_recall`. Also ``scene_scores`` (S,)
            if the model predicts scenes and the picture has objects.

        Raises:
            ValueError: The protocol needs boxes or labels that are missing, or does not take them.
        """
        protocol = self.metadata['protocol']
        for name, value, wanted in (
            ('bboxes', bboxes, protocol != 'sgdet'),
            ('labels', labels, protocol == 'predcls'),
        ):
            if (value is not None) != wanted:
                raise ValueError(
                    f'a model with protocol {protocol!r} {"needs" if wanted else "takes no"} {name}'
                )
        resized, factors = self._resize(image)
        feed = np.ascontiguousarray(resized.transpose(2, 0, 1)[None], np.float32)
        names = [output.name for output in self.detector.get_outputs()]
        values = dict(zip(names, self.detector.run(None, {'image': feed}), strict=True))
        if bboxes is not None:
            values['boxes'] = np.asarray(bboxes, np.float32).reshape(-1, 4) * factors
        if labels is not None:
            values['labels'] = np.asarray(labels, np.int64)
        values['size'] = np.array(resized.shape[:2], np.float32)
        if not len(values['boxes']):
            return self._empty()
        inputs = {entry.name: values[entry.name] for entry in self.head.get_inputs()}
        names = [output.name for output in self.head.get_outputs()]
        found = dict(zip(names, self.head.run(None, inputs), strict=True))
        graph = self._graph(values['boxes'], found)
        graph['bboxes'] = graph['bboxes'] / factors
        if 'scene_scores' in found:
            graph['scene_scores'] = found['scene_scores']
        return graph

    def _resize(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The picture as large as fits into ``scale``, and the factors of x, y, x, y."""
        height, width = image.shape[:2]
        if self.metadata['scale'] is None:
            return image, np.ones(4, np.float32)
        scale = self.metadata['scale']
        factor = min(max(scale) / max(height, width), min(scale) / min(height, width))
        size = int(width * factor + 0.5), int(height * factor + 0.5)
        resized = cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)
        return resized, np.array([size[0] / width, size[1] / height] * 2, np.float32)

    def _graph(self, boxes: np.ndarray, found: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Objects and relations, without duplicates in SGDet."""
        probs, pairs, scores = (
            found[key] for key in ('object_scores', 'pairs', 'predicate_scores')
        )
        if self.metadata['protocol'] == 'sgdet' and self.metadata['nms_iou_thr'] is not None:
            keep, labels, confidence = refined_nms(boxes, probs, self.metadata['nms_iou_thr'])
            position = np.full(len(boxes), -1)
            position[keep] = np.arange(len(keep))
            boxes, pairs = boxes[keep], position[pairs]
            whole = (pairs >= 0).all(axis=1)
            pairs, scores = pairs[whole], scores[whole]
        else:
            labels, confidence = probs.argmax(axis=1), probs.max(axis=1)
        most = self.metadata['max_relations']
        if most is not None and len(pairs) > most:
            rank = confidence[pairs].prod(axis=1) * scores.max(axis=1)
            chosen = np.sort(np.argsort(-rank, kind='stable')[:most])
            pairs, scores = pairs[chosen], scores[chosen]
        return dict(bboxes=boxes, labels=labels, scores=confidence, pairs=pairs, rel_scores=scores)

    def _empty(self) -> dict[str, np.ndarray]:
        return dict(
            bboxes=np.zeros((0, 4), np.float32),
            labels=np.zeros(0, np.int64),
            scores=np.zeros(0, np.float32),
            pairs=np.zeros((0, 2), np.int64),
            rel_scores=np.zeros((0, len(self.metadata['predicates'])), np.float32),
        )


def refined_nms(
    boxes: np.ndarray, probs: np.ndarray, iou_thr: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Per-class NMS; see :func:`gclip_mm.scene_graph.models.task_modules.graph_nms.refined_nms`.

    Args:
        boxes: (N, 4) xyxy.
        probs: (N, C) class probabilities without background.
        iou_thr: Boxes of one class with a higher IoU are duplicates.

    Returns:
        Indices of the boxes that survive in some class, their labels and scores.
    """
    iou = box_iou(boxes, boxes)
    surviving = np.zeros_like(probs)
    candidate = probs >= 0.1 * probs.max(axis=1, keepdims=True)
    for label in np.flatnonzero(candidate.any(axis=0)):
        rows = np.flatnonzero(candidate[:, label])
        rows = rows[np.argsort(-probs[rows, label], kind='stable')]
        while len(rows):
            best, rows = rows[0], rows[1:]
            surviving[best, label] = probs[best, label]
            rows = rows[iou[best, rows] <= iou_thr]
    keep = np.flatnonzero(surviving.max(axis=1) > 0)
    return keep, surviving[keep].argmax(axis=1), surviving[keep].max(axis=1)
