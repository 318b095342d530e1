"""MMEngine hooks, one file each."""

from .checkpoint_hook import GClipCheckpointHook
from .clip_hook import GClipHook
from .rng_state_hook import GClipRNGStateHook

__all__ = ['GClipCheckpointHook', 'GClipHook', 'GClipRNGStateHook']
