"""MMEngine hooks, one file each."""

from .clip_hook import GClipHook

__all__ = ['GClipHook']
