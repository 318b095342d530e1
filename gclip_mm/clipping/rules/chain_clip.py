"""Several rules, one after another."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor
from torch.optim import Optimizer

from ..base import Clipper, Measure, Outcome, scale_all
from ..checks import ClipConfigError
from ..config.parse import COMMON_KEYS, parse_clip_grad
from ..config.registry import CLIPPERS
from ..gradients.norms import combine


class ChainClipState(NamedTuple):
    """The state of the rules of a chain.

    Attributes:
        rules: their class names, in order.
        clips: what each keeps, as its ``state_dict`` gives it; {} where it keeps nothing.
    """

    rules: list[str]
    clips: list[dict[str, Any]]


@CLIPPERS.register_module()
class ChainClip(Clipper):
    """Apply several rules, each to what the one before has left.

    Every item of ``clips`` is a ``clip_grad`` config of its own, with its own ``schedule`` if it
    likes; routes and the non-finite policy belong to ``clip_grad`` itself. Rules in a row that
    scale all gradients together only multiply their coefficients, and one at the end goes into a
    fused optimizer's kernel as it would by itself.

    Logged are the norm before the first rule, the norm after the last, the threshold of the last,
    and as ``clip_fraction`` the mean of the rules' fractions.

    Good for: Stable-SPAM (``AdaClip``, then ``GradientStabilizer``); a rule that follows the run
    with an absolute bound behind it. Bad for: finding out which rule did what.

    Args:
        clips: the rules, at least one.

    Raises:
        ClipConfigError: no rules, or one that cannot be obeyed; names it as ``clips[i]``.

    Source: ``optax.chain``.

    Example:
        >>> optim_wrapper = dict(
        ...     type='GClipOptimWrapper',
        ...     optimizer=dict(type='SGD', lr=0.02, momentum=0.9),
        ...     clip_grad=dict(type='ChainClip', clips=[
        ...         dict(type='AGC', clip_factor=0.05), dict(type='NormClip', max_norm=10)]))
    """

    State = ChainClipState
    source = 'optax.chain'
    example = dict(
        clips=[dict(type='ValueClip', clip_value=0.1), dict(type='NormClip', max_norm=1)]
    )

    def __init__(self, clips: list[dict[str, Any]]) -> None:
        if not isinstance(clips, list | tuple) or not clips:
            raise ClipConfigError(
                'clip_grad: clips must be a list of rules, such as '
                "[dict(type='AGC', clip_factor=0.05), dict(type='NormClip', max_norm=10)], "
                f'got {clips!r}'
            )
        parsed = [_parse(i, clip) for i, clip in enumerate(clips)]
        self.clips: list[Clipper] = [config.outer for config in parsed]
        self.elementwise_state = any(clip.elementwise_state for clip in self.clips)
        self.drivers = [driver for config in parsed for driver in config.drivers]
        self.norm_type = self.clips[0].norm_type
        self.is_global = all(clip.is_global for clip in self.clips) and all(
            clip.norm_type == self.norm_type for clip in self.clips
        )
        self.never_increases = all(clip.never_increases for clip in self.clips)

    def check_optimizer(self, optimizer: Optimizer) -> None:
        """Ask every rule."""
        for i, clip in enumerate(self.clips):
            with _Within(i):
                clip.check_optimizer(optimizer)

    def measure(self, view) -> Measure:
        return self.clips[0].measure(view)

    def clip(self, view, measure: Measure, ok: Tensor | None) -> Outcome:
        # A coefficient that has been decided but not applied yet.
        coef = None
        fractions = 0.0
        outcome = None
        for i, clip in enumerate(self.clips):
            if i > 0:
                if clip.is_global and clip.norm_type == self.clips[i - 1].norm_type:
                    measure = Measure(outcome.post)
                else:
                    if coef is not None:
                        scale_all(view.grads, coef)
                        coef = None
                    measure = clip.measure(view)
            outcome = clip.clip(view, measure, ok)
            if outcome.coef is not None:
                coef = outcome.coef if coef is None else coef * outcome.coef
            fractions = fractions + outcome.clipped / outcome.units
        post = outcome.post
        if self.clips[-1].norm_type != self.norm_type:
            post = combine(view.norms(self.norm_type), self.norm_type)
            post = post if coef is None else post * coef
        return Outcome(coef, post, outcome.threshold, fractions, len(self.clips))

    # -- state -----------------------------------------------------------------------------------
    def reset(self) -> None:
        """Have every rule forget its state."""
        for clip in self.clips:
            clip.reset()

    def follow(self, slots: list[int | None]) -> None:
        """Have every rule follow."""
        for clip in self.clips:
            clip.follow(slots)

    def state_dict(self) -> dict[str, Any]:
        """A copy of the rules' states: {} where none keeps any."""
        states = [clip.state_dict() for clip in self.clips]
        if not any(states):
            return {}
        return ChainClipState(self._names(), states)._asdict()

    def load_state_dict(self, state: dict[str, Any], params: list[Tensor]) -> None:
        """Restore :meth:`state_dict`; {} starts afresh.

        Raises:
            ValueError: the state is that of another chain.
        """
        if not state:
            self.reset()
            return
        if set(state) != set(ChainClipState._fields):
            raise ValueError(
                f'ChainClip keeps the state {list(ChainClipState._fields)}, got {sorted(state)}'
            )
        if state['rules'] != self._names():
            raise ValueError(
                f"the ChainClip of the checkpoint is made of {state['rules']}, this run's of "
                f'{self._names()}'
            )
        for clip, own in zip(self.clips, state['clips'], strict=True):
            clip.load_state_dict(own, params)

    def _names(self) -> list[str]:
        return [type(clip).__name__ for clip in self.clips]


class _Within:
    """Has the message of a config error say in which of the clips it lies."""

    def __init__(self, i: int) -> None:
        self._i = i

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind, error, trace) -> None:
        if isinstance(error, ClipConfigError):
            text = str(error).removeprefix('clip_grad: ')
            raise ClipConfigError(f'clip_grad: clips[{self._i}]: {text}') from None


def _parse(i: int, clip: Any):
    with _Within(i):
        for key in COMMON_KEYS:
            if key != 'schedule' and isinstance(clip, dict) and key in clip:
                raise ClipConfigError(f'clip_grad: {key!r} belongs to clip_grad itself')
        return parse_clip_grad(clip)
