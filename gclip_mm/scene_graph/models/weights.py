"""Whether a checkpoint is one of a model, before it is tested or asked."""

from __future__ import annotations

from typing import Any

from .detectors import SceneGraphRCNN

# Weights that a model may do without: a scene head is left out by a line of a config.
_OPTIONAL = 'scene_head.'


def check_weights(model: SceneGraphRCNN, checkpoint: dict[str, Any]) -> None:
    """Raise where a checkpoint is of another model.

    MMEngine warns and goes on with what fits, which gives figures that look like something.

    Args:
        model: the model that is to be loaded, not wrapped.
        checkpoint: what MMEngine has saved, or weights alone.

    Raises:
        ValueError: weights are missing, or of another shape, or there are some that the model has
            no place for; says which, and how many.
    """
    state = checkpoint.get('state_dict', checkpoint)
    theirs = {key.removeprefix('module.'): value for key, value in state.items()}
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
            f'the checkpoint is of another model: {key} {why}'
            + (f', and {len(wrong) - 1} more do not fit' if len(wrong) > 1 else '')
            + '. Give the config that it was trained with'
        )
