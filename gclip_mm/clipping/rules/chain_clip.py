"""Apply several rules in sequence."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.optim import Optimizer

from ..base import Clipper, Finite, Measure, Outcome, Update
from ..checks import ClipConfigError
from ..config.parse import COMMON_KEYS, ClipConfig, parse_clip_grad
from ..config.registry import CLIPPERS
from ..gradients.norms import combine
from ..gradients.view import GradView


class ChainClipState(NamedTuple):
    """The state of the rules of a chain.

    Attributes:
        rules: their class names, in order.
        clips: the ``state_dict`` of each rule; {} for a rule without state.
    """

    rules: list[str]
    clips: list[dict[str, Any]]


@CLIPPERS.register_module()
class ChainClip(Clipper):
    """Apply several rules, each to the result of the previous one.

    Every item of ``clips`` is a ``clip_grad`` config, optionally with a ``schedule``. Routes and
    the non-finite policy belong to ``clip_grad`` itself. Consecutive global rules multiply their
    coefficients. A coefficient at the end is folded into a fused optimizer like that of a single
    rule.

    The log holds the norm before the first rule, the norm after the last rule, the threshold of the
    last rule, and as ``clip_fraction`` the mean of the rules' fractions.

    Good for: Stable-SPAM (``AdaClip``, then ``GradientStabilizer``); an adaptive rule
    followed by an absolute bound. Bad for: finding out which rule clipped.

    Args:
        clips: the rules, at least one.

    Raises:
        ClipConfigError: no rules, or an invalid rule, which is named as ``clips[i]``.

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

    @property
    def never_increases(self) -> bool:
        return all(clip.never_increases for clip in self.clips)

    def check_optimizer(self, optimizer: Optimizer) -> None:
        """Check the optimizer for every rule.

        Raises:
            ClipConfigError: a rule does not work with this optimizer.
        """
        for i, clip in enumerate(self.clips):
            with _Within(i):
                clip.check_optimizer(optimizer)

    def bind(self, optimizer: Optimizer, model: nn.Module | None) -> None:
        for clip in self.clips:
            clip.bind(optimizer, model)

    @property
    def bounds_updates(self) -> bool:
        return any(clip.bounds_updates for clip in self.clips)

    def after_step(self, view: GradView) -> Update | None:
        updates = [clip.after_step(view) for clip in self.clips]
        return next((update for update in reversed(updates) if update is not None), None)

    def measure(self, view: GradView) -> Measure:
        return self.clips[0].measure(view)

    def clip(self, view: GradView, measure: Measure, finite: Finite) -> Outcome:
        # A coefficient that is decided but not applied yet.
        coef: Tensor | None = None
        fractions: Tensor | float = 0.0
        outcome: Outcome | None = None
        for i, clip in enumerate(self.clips):
            if outcome is not None:
                if clip.is_global and clip.norm_type == self.clips[i - 1].norm_type:
                    measure = Measure(outcome.post)
                else:
                    if coef is not None:
                        view.backend.scale_all(coef)
                        coef = None
                    measure = clip.measure(view)
            outcome = clip.clip(view, measure, finite)
            if outcome.coef is not None:
                coef = outcome.coef if coef is None else coef * outcome.coef
            fractions = fractions + outcome.clipped / outcome.parts
        assert outcome is not None  # the constructor refuses an empty chain
        post = outcome.post
        if self.clips[-1].norm_type != self.norm_type:
            post = combine(view.norms(self.norm_type), self.norm_type)
            post = post if coef is None else post * coef
        return Outcome(coef, post, outcome.threshold, fractions, len(self.clips))

    # -- state -----------------------------------------------------------------------------------
    def reset(self) -> None:
        """Drop the state of every rule."""
        for clip in self.clips:
            clip.reset()

    def follow(self, slots: list[int | None]) -> None:
        """Reorder the state of every rule."""
        for clip in self.clips:
            clip.follow(slots)

    def state_dict(self) -> dict[str, Any]:
        """A copy of the states of the rules; {} if no rule has one."""
        states = [clip.state_dict() for clip in self.clips]
        if not any(states):
            return {}
        return ChainClipState(self._names(), states)._asdict()

    def load_state_dict(self, state: dict[str, Any], params: list[Tensor]) -> None:
        """Restore :meth:`state_dict`; {} starts from scratch.

        Raises:
            ValueError: the state belongs to another chain.
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
                f'the ChainClip of the checkpoint holds {state["rules"]}, that of this run '
                f'{self._names()}'
            )
        for clip, own in zip(self.clips, state['clips'], strict=True):
            clip.load_state_dict(own, params)

    def _names(self) -> list[str]:
        return [clip.name for clip in self.clips]


class _Within:
    """Adds the position in ``clips`` to the message of a config error."""

    def __init__(self, i: int) -> None:
        self._i = i

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, ClipConfigError):
            text = str(error).removeprefix('clip_grad: ')
            raise ClipConfigError(f'clip_grad: clips[{self._i}]: {text}') from None


def _parse(i: int, clip: Any) -> ClipConfig:
    with _Within(i):
        for key in COMMON_KEYS:
            if key != 'schedule' and isinstance(clip, dict) and key in clip:
                raise ClipConfigError(f'clip_grad: {key!r} belongs to clip_grad itself')
        return parse_clip_grad(clip)
