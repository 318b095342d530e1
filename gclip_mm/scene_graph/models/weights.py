"""Checks that a checkpoint belongs to a model before testing or inference."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .detectors import SceneGraphDetector

# Checkpoint weights that the model may lack: a config can disable the scene head, and prediction
# can do without a debiasing.
_OPTIONAL = ('scene_head.', 'relation_head.debias.')


def check_weights(model: nn.Module, checkpoint: dict[str, Any]) -> None:
    """Check that a checkpoint has exactly the weights of a model.

    MMEngine only warns and loads the matching weights, which gives wrong but plausible metrics.

    Args:
        model: Model to load the checkpoint into, without a distributed wrapper.
        checkpoint: Checkpoint of MMEngine, or a state dict.

    Raises:
        ValueError: Weights are missing, have another shape, are unknown to the model, or are not
            finite. The message names the first one and their number.
    """
    state = checkpoint.get('state_dict', checkpoint)
    theirs = {key.removeprefix('module.'): value for key, value in state.items()}
    if isinstance(model, SceneGraphDetector):
        theirs = {new: theirs[key] for key, new in model.fitting_keys(theirs).items()}
    ours = model.state_dict()
    wrong = {key: 'is missing' for key in ours if key not in theirs}
    for key, value in theirs.items():
        if key not in ours and not key.startswith(_OPTIONAL):
            wrong[key] = 'is unknown to the model'
        elif key in ours and value.shape != ours[key].shape:
            wrong[key] = f'has the shape {tuple(value.shape)}, not {tuple(ours[key].shape)}'
    if wrong:
        key, why = next(iter(wrong.items()))
        raise ValueError(
            f'the checkpoint belongs to another model: {key} {why}'
            + (f', and {len(wrong) - 1} more do not match' if len(wrong) > 1 else '')
            + '. Use the config that it was trained with'
        )
    broken = [
        key
        for key, value in theirs.items()
        if torch.is_tensor(value) and value.is_floating_point() and not torch.isfinite(value).all()
    ]
    if broken:
        raise ValueError(
            f'{len(broken)} weights of the checkpoint hold NaN or infinite values, the first is '
            f'{broken[0]}: its training has diverged'
        )
