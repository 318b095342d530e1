"""MMEngine's side of the engine: optimizer wrappers and hooks, registered on import."""

from ..compat import allow_mmengine_checkpoints
from .apply_clip import apply_clip
from .hooks import (
    GClipCheckpointHook,
    GClipHook,
    GClipMonitorHook,
    GClipRNGStateHook,
    GClipRuntimeInfoHook,
    GClipSpikeHook,
)
from .optim_wrapper import GClipAmpOptimWrapper, GClipOptimWrapper
from .patches.fsdp_strategy import complete_fsdp_strategy
from .patches.optim_wrapper_dict import name_members

allow_mmengine_checkpoints()
complete_fsdp_strategy()
name_members()

__all__ = [
    'GClipAmpOptimWrapper',
    'GClipCheckpointHook',
    'GClipHook',
    'GClipMonitorHook',
    'GClipOptimWrapper',
    'GClipRNGStateHook',
    'GClipRuntimeInfoHook',
    'GClipSpikeHook',
    'apply_clip',
]
