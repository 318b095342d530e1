"""Random state in the checkpoint, so that a resumed run equals an uninterrupted one."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator
from typing import Any

from mmengine.dist import all_gather_object, get_rank, get_world_size
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch.utils.data import DataLoader

from ..checkpoints.rng_state import capture_rng_state, restore_rng_state
from .keys import reject_unknown_keys

#: Key of the state in a checkpoint.
RNG_KEY = 'gclip_rng'


@HOOKS.register_module()
@reject_unknown_keys
class GClipRNGStateHook(Hook):
    """Saves the random state of Python, NumPy, PyTorch and CUDA of every process, and restores it.

    MMEngine's checkpoints hold no random state, so a resumed run draws other augmentations,
    proposals and dropout masks than the run it continues. With this hook the resumed run reaches
    bit-identical weights:

    * ``IterBasedTrainLoop``: on a resume MMEngine reads and drops the batches of the iterations
      already trained, which advances the sampler and the workers. The state is restored after
      that, before the next batch is read.
    * ``EpochBasedTrainLoop``: the state is restored at the start of the epoch. MMEngine resumes a
      checkpoint from the middle of an epoch at the first batch of that epoch; this hook warns of
      it.
    * Validation draws random numbers too (each data loader draws a seed), but a resumed run does
      not repeat the validation. The state from before a validation is restored after it.
    * The seed of the sampler and of the workers is restored as well, if the config sets none.

    The hook warns where it cannot restore the state: ``persistent_workers=True`` with an
    epoch-based loop (the generators of the workers cannot be accessed), and another number of
    processes. It does not restore transforms with a state (``CachedMosaic``) or gradients that
    were accumulated for part of a step, and it does not make kernels deterministic; set
    ``randomness=dict(deterministic=True)`` for that.

    All processes must call ``runner.save_checkpoint``, as MMEngine's ``CheckpointHook`` does,
    because their states are gathered there.

    Raises:
        ClipConfigError: an unknown key.

    Example:
        >>> custom_hooks = [dict(type='GClipRNGStateHook')]
    """

    # First, so that no other hook draws numbers between the restoring and the next batch.
    priority = 'HIGHEST'

    def __init__(self) -> None:
        self._loaded: dict[str, Any] | None = None
        self._at_epoch: dict[str, Any] | None = None
        self._before_val: dict[str, Any] | None = None
        self._gathered: list[dict[str, Any]] | None = None

    # -- saving ----------------------------------------------------------------------------------
    def before_run(self, runner: Runner) -> None:
        """With several processes, gather their states whenever a checkpoint is saved."""
        if get_world_size() == 1:
            return
        save = runner.save_checkpoint

        @functools.wraps(save)
        def save_with_states(*args: Any, **kwargs: Any) -> Any:
            # The runner's method continues in one process only, so gather before it.
            self._gathered = all_gather_object(self._current())
            return save(*args, **kwargs)

        runner.save_checkpoint = save_with_states

    def after_run(self, runner: Runner) -> None:
        """Restore the runner's own method."""
        runner.__dict__.pop('save_checkpoint', None)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Add the state: one entry for each process."""
        states, self._gathered = self._gathered or [self._current()], None
        checkpoint[RNG_KEY] = {'states': states, 'sampler_seed': _sampler_seed(runner)}

    def _current(self) -> dict[str, Any]:
        # A checkpoint saved during validation is resumed after it.
        return self._before_val if self._before_val is not None else capture_rng_state()

    # -- validation ------------------------------------------------------------------------------
    def before_val(self, runner: Runner) -> None:
        """Remember the state."""
        self._before_val = capture_rng_state()

    def after_val(self, runner: Runner) -> None:
        """Restore it."""
        if self._before_val is not None:
            restore_rng_state(self._before_val)
            self._before_val = None

    # -- resuming --------------------------------------------------------------------------------
    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Keep the state of the checkpoint until it is known whether the run resumes."""
        self._loaded = checkpoint.get(RNG_KEY, {})

    def before_train(self, runner: Runner) -> None:
        """On a resume, schedule the restoring of the state."""
        # A validation that ended with an error leaves its state.
        self._before_val = None
        loop = runner.train_loop
        by_iter = hasattr(loop, 'dataloader_iterator')
        if not by_iter and _is_persistent(loop.dataloader):
            _warn(
                'persistent_workers=True: the random state of the workers cannot be saved, so a '
                'resumed run will draw other augmentations. Set persistent_workers=False for a '
                'bit-identical resume'
            )
        loaded, self._loaded = self._loaded, None
        if runner.iter == 0 or loaded is None:
            return
        state = self._state_of_rank(loaded)
        if state is None:
            return
        _restore_sampler_seed(loop, loaded.get('sampler_seed'))
        if by_iter:
            loop.dataloader_iterator = _RestoringIterator(loop, state)
            return
        if runner.iter % len(loop.dataloader):
            _warn(
                f'the checkpoint is from the middle of epoch {runner.epoch + 1}, and MMEngine '
                'repeats that epoch from its start: the run will differ from the interrupted one. '
                'Save checkpoints with by_epoch=True, or train with IterBasedTrainLoop'
            )
        self._at_epoch = state

    def before_train_epoch(self, runner: Runner) -> None:
        """Restore the state for an epoch-based loop."""
        if self._at_epoch is not None:
            restore_rng_state(self._at_epoch)
            self._at_epoch = None

    @staticmethod
    def _state_of_rank(loaded: dict[str, Any]) -> dict[str, Any] | None:
        states = loaded.get('states')
        if not states:
            _warn('the checkpoint holds no random state: the resumed run draws other numbers')
            return None
        if len(states) != get_world_size():
            _warn(
                f'the checkpoint holds the random states of {len(states)} processes, this run has '
                f'{get_world_size()}: not restored'
            )
            return None
        return states[get_rank()]


class _RestoringIterator:
    """Iterates over a loop's data and restores the state after the batches that MMEngine skips.

    Then the loop gets its own iterator back.

    Args:
        loop: the training loop; ``loop.iter`` batches will be skipped.
        state: what :func:`capture_rng_state` returned.
    """

    def __init__(self, loop: Any, state: dict[str, Any]) -> None:
        self._loop = loop
        self._state = state
        self._batches = loop.dataloader_iterator
        self._to_skip = loop.iter

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        if self._to_skip == 0:
            restore_rng_state(self._state)
            self._loop.dataloader_iterator = self._batches
        self._to_skip -= 1
        return next(self._batches)


def _sampler(dataloader: DataLoader) -> Any:
    """The sampler with a seed, which may be inside the batch sampler; None: no sampler has one."""
    for sampler in (dataloader.sampler, getattr(dataloader.batch_sampler, 'sampler', None)):
        if getattr(sampler, 'seed', None) is not None:
            return sampler
    return None


def _sampler_seed(runner: Runner) -> int | None:
    return getattr(_sampler(runner.train_loop.dataloader), 'seed', None)


def _restore_sampler_seed(loop: Any, seed: int | None) -> None:
    """Give the sampler and the workers the seed of the interrupted run.

    The loader was built, with another seed, before the checkpoint was loaded.
    """
    sampler = _sampler(loop.dataloader)
    if seed is None or sampler is None or sampler.seed == seed:
        return
    sampler.seed = seed
    if hasattr(sampler, '_indices_of_rank'):
        # InfiniteSampler computes its order when it is built.
        sampler.indices = sampler._indices_of_rank()
    init: Callable[..., Any] | None = loop.dataloader.worker_init_fn
    if isinstance(init, functools.partial) and 'seed' in init.keywords:
        loop.dataloader.worker_init_fn = functools.partial(
            init.func, *init.args, **{**init.keywords, 'seed': seed}
        )
    if hasattr(loop, 'dataloader_iterator'):
        loop.dataloader_iterator = type(loop.dataloader_iterator)(loop.dataloader)


def _is_persistent(dataloader: DataLoader) -> bool:
    return bool(dataloader.num_workers and dataloader.persistent_workers)


def _warn(message: str) -> None:
    print_log(f'GClipRNGStateHook: {message}', logger='current', level=logging.WARNING)
