"""Inference of scene graphs, based on MMDetection's ``DetInferencer``."""

from __future__ import annotations

import copy
import os.path as osp
from collections.abc import Iterator, Sequence
from typing import Any

import mmengine
import numpy as np
import torch
from mmdet.apis import DetInferencer
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.structures import InstanceData
from torch import nn

from .models.detectors import SceneGraphDetector
from .models.protocol import SceneGraphProtocol
from .models.weights import check_weights
from .visualization import SceneGraphVisualizer

#: Valid keys of an input dict.
INPUT_KEYS = ('img', 'img_path', 'bboxes', 'labels')
# Transforms of a test pipeline that load annotations, which inference inputs lack.
_ANNOTATION_LOADERS = ('LoadSceneGraphAnnotations', 'LoadAnnotations')


class SceneGraphInferencer(DetInferencer):
    """Predicts scene graphs of pictures.

    Arguments and call are those of :class:`mmdet.apis.DetInferencer`: ``inputs`` is a path or URL,
    a folder, an array (H, W, 3) uint8 BGR, or a list of these. A PredCls or SGCls model needs boxes
    (and labels), which a dict supplies: ``dict(img=array, bboxes=[[x1, y1, x2, y2], ...],
    labels=[...])`` or ``dict(img_path=..., ...)``. Boxes are in pixels of the picture, labels are
    indices or class names.

    Args:
        model: Config file. None: use the config in the checkpoint.
        weights: Checkpoint.
        device: None: a GPU if available.
        protocol: Overrides the protocol of the config: ``'predcls'``, ``'sgcls'`` or ``'sgdet'``.
            None: no override.
        max_relations: Maximum number of triplets of a picture in the result: those with the
            highest product of subject, object and predicate score.
        **kwargs: As for ``DetInferencer``.

    Raises:
        ValueError: The model is not a SceneGraphDetector, the checkpoint belongs to another model,
            or the protocol is unknown.

    Example:
        >>> inferencer = SceneGraphInferencer(
        ...     'configs/scene_graph/shapescenes/rnn_sgdet_shapescenes.py', 'epoch_12.pth')
        >>> result = inferencer('picture.jpg', out_dir='out', no_save_pred=False)
        >>> result['predictions'][0]['relations'][0]
        {'subject': 0, 'predicate': 'left of', 'object': 2, 'score': 0.61, ...}
    """

    # Set by DetInferencer.
    num_visualized_imgs: int
    num_predicted_imgs: int

    def __init__(
        self,
        model: str | dict | None = None,
        weights: str | None = None,
        device: str | None = None,
        protocol: str | SceneGraphProtocol | None = None,
        max_relations: int = 100,
        **kwargs: Any,
    ) -> None:
        if max_relations < 1:
            raise ValueError(f'max_relations must be at least 1, got {max_relations}')
        wanted = None if protocol is None else SceneGraphProtocol.parse(protocol)
        super().__init__(model=model, weights=weights, device=device, **kwargs)
        if not isinstance(self.model, SceneGraphDetector):
            raise ValueError(
                f'SceneGraphInferencer needs a SceneGraphDetector, got {type(self.model).__name__}'
            )
        if wanted is not None:
            self.model.set_protocol(wanted)
        self.max_relations = max_relations

    @property
    def protocol(self) -> SceneGraphProtocol:
        """Protocol of the model."""
        return self.model.protocol

    def __call__(self, inputs: Any, *args: Any, **kwargs: Any) -> dict:
        """Predict; see :class:`mmdet.apis.DetInferencer`."""
        # Output files of array inputs are numbered; keep pictures and predictions in step.
        count = max(self.num_visualized_imgs, self.num_predicted_imgs)
        self.num_visualized_imgs = self.num_predicted_imgs = count
        return super().__call__(inputs, *args, **kwargs)

    def _load_weights_to_model(self, model: nn.Module, checkpoint: dict | None, cfg: Any) -> None:
        if checkpoint is not None and isinstance(model, SceneGraphDetector):
            check_weights(model, checkpoint)
        super()._load_weights_to_model(model, checkpoint, cfg)

    # ---- input -------------------------------------------------------------------------------

    def _init_pipeline(self, cfg: Config) -> Compose:
        pipeline = cfg.test_dataloader.dataset.pipeline
        cfg = copy.deepcopy(cfg)
        cfg.test_dataloader.dataset.pipeline = [
            step
            for step in pipeline
            if str(getattr(step['type'], '__name__', step['type'])).rpartition('.')[2]
            not in _ANNOTATION_LOADERS
        ]
        return super()._init_pipeline(cfg)

    def _init_visualizer(self, cfg: Config) -> SceneGraphVisualizer:
        visualizer = super()._init_visualizer(cfg)
        if isinstance(visualizer, SceneGraphVisualizer):
            return visualizer
        # Without this, a config without a SceneGraphVisualizer would draw boxes only.
        visualizer = SceneGraphVisualizer(name=f'scene_graph_{id(self)}')
        visualizer.dataset_meta = self.model.dataset_meta
        return visualizer

    def _inputs_to_list(self, inputs: Any) -> list:
        """List of inputs; a folder becomes its pictures, sorted by name."""
        items = super()._inputs_to_list(inputs)
        if isinstance(inputs, str) and items != [inputs]:
            items.sort()  # the listing order of a folder is arbitrary
        if not items:
            raise FileNotFoundError(f'no picture found in {inputs!r}')
        return items

    def _get_chunk_data(self, inputs: Sequence, chunk_size: int) -> Iterator[list]:
        for start in range(0, len(inputs), chunk_size):
            yield [self._prepare(item) for item in inputs[start : start + chunk_size]]

    def _prepare(self, item: str | np.ndarray | dict) -> tuple[str | np.ndarray, dict]:
        """Return the picture for drawing, and the input of the model."""
        given: dict[str, Any] = {}
        if isinstance(item, dict):
            unknown = sorted(set(item) - set(INPUT_KEYS))
            if unknown or ('img' in item) == ('img_path' in item):
                raise ValueError(
                    "an input dict needs 'img' or 'img_path', and 'bboxes' (SGCls and PredCls) and "
                    f"'labels' (PredCls); got keys {sorted(item)}"
                )
            given = {key: item[key] for key in ('bboxes', 'labels') if key in item}
            picture = item['img'] if 'img' in item else item['img_path']
        else:
            picture = item
        if isinstance(picture, str) and '://' not in picture and not osp.isfile(picture):
            raise FileNotFoundError(f'no picture at {picture}')
        if isinstance(picture, np.ndarray) and (picture.ndim != 3 or picture.shape[2] != 3):
            raise ValueError(
                f'a picture must be an array (H, W, 3), BGR; got shape {picture.shape}. Convert a '
                'grey picture by np.repeat(picture[..., None], 3, axis=2)'
            )
        data = self.pipeline(picture)
        self._add_given(data['data_samples'], given)
        return picture, data

    def _add_given(self, sample: DetDataSample, given: dict[str, Any]) -> None:
        needed = ['bboxes'] if self.protocol.has_boxes else []
        needed += ['labels'] if self.protocol.has_labels else []
        missing = [key for key in needed if key not in given]
        if missing:
            raise ValueError(
                f'the protocol {self.protocol.value!r} of this model needs {missing[0]!r} of the '
                'objects: pass dict(img_path=..., bboxes=..., labels=...) instead of a picture, or '
                "create the inferencer with protocol='sgdet' if the model's detector is trained"
            )
        if not needed:
            if given:
                raise ValueError(
                    f'a model with protocol sgdet detects objects itself: remove {sorted(given)}, '
                    "or create the inferencer with protocol='predcls' or 'sgcls'"
                )
            return
        boxes = torch.as_tensor(np.asarray(given['bboxes'], np.float32).reshape(-1, 4))
        if not (boxes[:, 2:] > boxes[:, :2]).all():
            raise ValueError(
                'bboxes must be x1, y1, x2, y2 with x1 < x2 and y1 < y2, in pixels of the picture; '
                f'got '
                f'{boxes[(boxes[:, 2:] <= boxes[:, :2]).any(dim=1)][0].tolist()}'
            )
        scale = boxes.new_tensor(sample.metainfo.get('scale_factor', (1.0, 1.0))).repeat(2)
        objects = InstanceData(bboxes=boxes * scale)
        if 'labels' in needed:
            labels = self._labels(given['labels'])
            if len(labels) != len(boxes):
                raise ValueError(f'{len(boxes)} bboxes, but {len(labels)} labels')
            objects.labels = torch.tensor(labels, dtype=torch.int64)
        sample.gt_instances = objects

    def _labels(self, given: Sequence[int | str]) -> list[int]:
        """Convert labels or class names to labels."""
        names = list(self.model.dataset_meta.get('classes') or ())
        count = self.model.relation_head.num_classes
        labels = []
        for label in np.asarray(given).reshape(-1).tolist():
            found = names.index(label) if label in names else label
            if isinstance(found, str) or found != int(found) or not 0 <= found < count:
                raise ValueError(
                    f'labels must be indices in [0, {count}) or names in {names}; got {label!r}'
                )
            labels.append(int(found))
        return labels

    # ---- output ------------------------------------------------------------------------------

    def visualize(self, inputs: list, preds: list[DetDataSample], **kwargs: Any) -> list | None:
        """Draw the predictions. Input arrays are BGR, as read by OpenCV; drawing uses RGB."""
        inputs = [x[..., ::-1] if isinstance(x, np.ndarray) else x for x in inputs]
        return super().visualize(inputs, preds, **kwargs)

    def pred2dict(self, data_sample: DetDataSample, pred_out_dir: str = '') -> dict[str, Any]:
        """Convert a scene graph to plain numbers and names that JSON can represent.

        Returns:
            ``labels``, ``scores``, ``bboxes`` (xyxy in pixels of the picture) and ``names`` of the
            objects; ``relations``, a list of dicts with ``subject``, ``object`` (indices of
            objects), ``predicate`` (name), ``predicate_label``, ``predicate_score`` and ``score``
            (of the triplet), best first; with a scene head, ``scene`` (``name``, ``label``,
            ``score``). Saved as ``preds/<picture>.json`` in ``pred_out_dir`` unless that is empty.
        """
        sample, meta = data_sample.cpu(), self.model.dataset_meta
        objects = sample.pred_instances
        result: dict[str, Any] = dict(
            labels=objects.labels.tolist(),
            names=[_name(meta.get('classes'), i) for i in objects.labels.tolist()],
            scores=objects.scores.tolist(),
            bboxes=objects.bboxes.tolist(),
            relations=self._triplets(sample),
        )
        if 'pred_scene' in sample:
            label = int(sample.pred_scene.label)
            result['scene'] = dict(
                name=_name(meta.get('scenes'), label),
                label=label,
                score=float(sample.pred_scene.score[label]),
            )
        if pred_out_dir:
            path = sample.get('img_path')
            name = osp.splitext(osp.basename(path))[0] if path else f'{self.num_predicted_imgs:08d}'
            self.num_predicted_imgs += 1
            mmengine.dump(result, osp.join(pred_out_dir, 'preds', f'{name}.json'))
        return result

    def _triplets(self, sample: DetDataSample) -> list[dict[str, Any]]:
        scores, pairs = sample.pred_instances.scores, sample.pred_relations.pairs
        if len(pairs) == 0:
            return []
        best, predicates = sample.pred_relations.scores.max(dim=1)
        product = best * scores[pairs].prod(dim=1)
        order = torch.sort(product, descending=True, stable=True).indices[: self.max_relations]
        names = self.model.dataset_meta.get('predicates')
        return [
            dict(
                subject=int(pairs[i, 0]),
                predicate=_name(names, int(predicates[i])),
                object=int(pairs[i, 1]),
                score=float(product[i]),
                predicate_label=int(predicates[i]),
                predicate_score=float(best[i]),
            )
            for i in order.tolist()
        ]


def _name(names: Sequence[str] | None, label: int) -> str:
    return names[label] if names and label < len(names) else str(label)
