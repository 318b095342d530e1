"""MMEngine hooks, one file each."""

from .checkpoint_hook import GClipCheckpointHook
from .clip_hook import GClipHook
from .monitor_hook import GClipMonitorHook
from .rng_state_hook import GClipRNGStateHook
from .runtime_info_hook import GClipRuntimeInfoHook
from .spike_hook import GClipSpikeHook

__all__ = [
    'GClipCheckpointHook',
    'GClipHook',
    'GClipMonitorHook',
    'GClipRNGStateHook',
    'GClipRuntimeInfoHook',
    'GClipSpikeHook',
]
