"""Fits the keys of a checkpoint of a plain detector to a scene-graph model."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor

#: Modules of a scene-graph model that are not parts of its detector.
GRAPH_PARTS = ('relation_head', 'scene_head', 'graph_neck', 'roi_extractor')
#: The module of a SceneGraphDetector that holds the detector.
DETECTOR = 'detector.'
# Absent from converted checkpoints; without effect on results.
_COUNTER = 'num_batches_tracked'


def is_graph_key(key: str) -> bool:
    """Whether a weight belongs to the scene graph and not to the detector."""
    return key.split('.', 1)[0] in GRAPH_PARTS


def fitting_keys(keys: Iterable[str], nested: bool) -> dict[str, str]:
    """Map keys of a checkpoint to those of a scene-graph model.

    Args:
        keys: Keys of a plain detector, of a SceneGraphDetector or of a SceneGraphRCNN.
        nested: Whether the model holds its detector in the module ``detector``.

    Returns:
        The new name of each key.
    """
    keys = list(keys)
    if nested == any(key.startswith(DETECTOR) for key in keys):
        return {key: key for key in keys}
    if nested:
        return {key: key if is_graph_key(key) else DETECTOR + key for key in keys}
    return {key: key.removeprefix(DETECTOR) for key in keys}


def check_detector_weights(
    theirs: dict[str, Any], ours: dict[str, Tensor], frozen: bool, name: str
) -> None:
    """Check that the checkpoint of a plain detector fits the detector of a model.

    MMEngine only warns of weights that do not fit, and the relations are then trained on random
    features.

    Args:
        theirs: Weights of the checkpoint, with keys of the model.
        ours: Weights of the model.
        frozen: Whether the detector is frozen. Then it needs all weights; otherwise one that fits
            is enough, so that a backbone can be the start of a training.
        name: Class name of the detector.

    Raises:
        ValueError: Weights do not fit. Names the first one, and how many more do not.
    """
    if any(is_graph_key(key) for key in theirs) or not theirs:
        return
    wanted = {k: v for k, v in ours.items() if not is_graph_key(k) and not k.endswith(_COUNTER)}
    wrong = {}
    for key, value in wanted.items():
        if key not in theirs:
            wrong[key] = 'is missing'
        elif theirs[key].shape != value.shape:
            wrong[key] = f'has the shape {tuple(theirs[key].shape)}, not {tuple(value.shape)}'
    if len(wrong) == len(wanted) or (frozen and wrong):
        key, why = next(iter(wrong.items()))
        raise ValueError(
            f'the checkpoint does not fit the detector of this config, a {name}: '
            f'{key.removeprefix(DETECTOR)} {why}'
            + (f', and {len(wrong) - 1} more do not fit' if len(wrong) > 1 else '')
            + (
                '. A frozen detector needs all of its weights: use the checkpoint that was '
                'trained with its config, on the same classes'
                if frozen
                else ''
            )
        )
