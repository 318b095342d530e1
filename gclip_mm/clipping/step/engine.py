"""The engine: clips the gradients of one optimizer, in every call of its ``step``.

It is called by the seam (:mod:`gclip_mm.clipping.step.optimizer`), ahead of ``optimizer.step``. By
then a GradScaler has decided whether the step is taken and has unscaled the gradients, except for a
fused optimizer, which unscales in its own kernel (``grad_scale``, ``found_inf``). The engine uses
the same two attributes: where one coefficient applies to everything, it goes into ``grad_scale``
(the *fold*), so that clipping costs one read of the gradients, and off the CPU a non-finite step is
skipped by ``found_inf`` without a host read.

A step runs: collect -> unscale or keep -> [decide on the device] -> measure -> judge -> decide and
apply -> record.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ...compat import foreach_scale_
from ..base import Finite, Measure, Outcome
from ..checks import ClipConfigError
from ..config.parse import ClipConfig, parse_clip_grad
from ..host import host
from ..kernels import can_run_on
from .buffers import BufferKeeper
from .decision import decide
from .nonfinite import NonFiniteGradientError, SkipCounter, offenders
from .observers import StepObserver
from .optimizer import (
    OptimizerSide,
    StepSeam,
    check_not_clipped,
    check_own_clipping,
    check_trainer,
    clippable,
)
from .parameters import ParameterBook, RoutedView
from .record import add_update, make_record, record_to_dict, summarize, total_norm
from .state import dump_state, load_state

#: How many steps of one iteration can be told apart afterwards.
_RECENT = 16


@dataclass
class _Step:
    """One step on its way through the engine.

    Attributes:
        views: the gradients by route.
        grads: all gradients.
        fused: whether the optimizer takes ``grad_scale`` and ``found_inf``.
        folds: whether one coefficient can go into ``grad_scale``.
        scale: 0-d, the loss scale that the gradients still carry, or None.
        scaler_inf: not 0 where a GradScaler has found an infinite gradient, or None.
        measures: what the rule of each view has read.
        norm: 0-d, the norm of all gradients.
        finite: whether the gradients are finite.
    """

    views: list[RoutedView]
    grads: list[Tensor]
    fused: bool
    folds: bool
    scale: Tensor | None
    scaler_inf: Tensor | None
    measures: list[Measure] = field(default_factory=list)
    norm: Tensor = None  # type: ignore[assignment]
    finite: Finite = Finite(True)  # noqa: RUF009


class GradClipEngine:
    """Clips what ``optimizer`` is about to step with.

    Args:
        optimizer: any ``torch.optim.Optimizer`` that no other engine clips; a wrapper without step
            hooks stands for the one that it wraps
            (:func:`gclip_mm.clipping.step.optimizer.inspection.clippable`).
        clip_grad: a ``clip_grad`` config (:func:`gclip_mm.clipping.config.parse.parse_clip_grad`);
            it is not changed.
        model: gives the parameters their names and modules. Needed before the first step when the
            config has routes; may also come later, by :meth:`bind`.
        clock: returns ``(iteration, epoch)``, both from 0, for schedules; the default counts the
            steps of the optimizer and knows no epochs.
        on_record: called with the record (6,) of every step (:mod:`gclip_mm.clipping.step.record`).
        owner: the object that created the engine, for those who find the engine on the optimizer.

    Raises:
        ClipConfigError: an invalid config; an object that is not an optimizer, or is clipped
            already.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        clip_grad: dict[str, Any],
        model: nn.Module | None = None,
        clock: Callable[[], tuple[int, int]] | None = None,
        on_record: Callable[[Tensor], None] | None = None,
        owner: object | None = None,
    ) -> None:
        self.optimizer = optimizer = clippable(optimizer)
        self.config: ClipConfig = parse_clip_grad(clip_grad)
        self.clock = clock
        self.on_record = on_record
        self.owner = owner
        #: Called around the clipping of every step; an empty list costs nothing.
        self.observers: list[StepObserver] = []
        self.steps = self._begun = 0
        self.skips = SkipCounter(self.config.max_consecutive_skips)
        self.last_record: Tensor | None = None
        #: Whether each of the last steps was left out; a 0-d tensor, True or not 0 if so, where
        #: only the device knows.
        self.recent_skips: deque[bool | Tensor] = deque(maxlen=_RECENT)
        self.book = ParameterBook(optimizer, self.config.router)
        self._pending_state: dict[str, Any] | None = None
        self._side = OptimizerSide(optimizer)
        self._buffers: BufferKeeper | None = None
        self._norm_type = self.config.outer.norm_type
        # The views of the step under way, if a rule bounds its update.
        self._updated: list[RoutedView] = []
        # Set by clip_now(): the gradients are clipped already, and whether the step is to be taken.
        self._early: bool | None = None
        self._check_epochs()
        self._check_optimizer()
        self._bind_rules()
        if model is not None:
            self.bind(model)
        # Last: an engine that could not be built must not stay on the optimizer.
        try:
            self._seam = StepSeam(self)
        except BaseException:
            if self._buffers is not None:
                self._buffers.forget()
            raise

    # -- life cycle ------------------------------------------------------------------------------
    @staticmethod
    def on(optimizer: Optimizer) -> GradClipEngine | None:
        """The engine that clips for an optimizer, or for the one in a wrapper, or None."""
        seam = StepSeam.on(optimizer)
        return None if seam is None else seam.engine

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key != '_seam'}

    def __copy__(self) -> GradClipEngine:
        raise TypeError(
            'a shallow copy would be a second engine on the same optimizer: copy.deepcopy copies '
            'both'
        )

    def __setstate__(self, state: dict[str, Any]) -> None:
        # torch copies an optimizer without its hooks; without this the copy would not be clipped.
        vars(self).update(state)
        self.book.refresh(is_change=True)
        self._bind_rules()
        self._seam = StepSeam(self)

    @property
    def last_skipped(self) -> bool | Tensor:
        """Whether the last step was left out; a 0-d tensor where only the device knows."""
        return self.recent_skips[-1] if self.recent_skips else False

    @property
    def is_bound(self) -> bool:
        """Whether a model has given the parameters their names."""
        return self.book.is_bound

    def bind(self, model: nn.Module) -> None:
        """Take names and modules from the model.

        Raises:
            ClipConfigError: a route that matches no parameter.
        """
        check_trainer(model)
        self.book.bind(model)
        self._bind_rules()
        if self.config.nonfinite == 'skip':
            self._buffers = self._buffers or BufferKeeper()
            self._buffers.watch(model)

    def _bind_rules(self) -> None:
        for route in self.config.router.routes:
            if route.clipper is not None:
                route.clipper.bind(self.optimizer, self.book.model)

    def keep_buffers(self) -> None:
        """A step that is left out puts the buffers of the model back to what they are now.

        For callers that know where an iteration begins. Without this call they are put back to what
        they were after the last step that was taken.
        """
        if self._buffers is not None:
            self._buffers.keep()

    def remove(self) -> None:
        """Detach from the optimizer, which is then as it was before."""
        self.restore()
        self._seam.remove()
        if self._buffers is not None:
            self._buffers.forget()

    def warn_if_unused(self, has_trained: bool = False) -> None:
        """Warn if no step was clipped although there was something to clip.

        Args:
            has_trained: whether iterations are known to have been run; otherwise gradients of the
                parameters are the sign.
        """
        if self.last_record is None:
            self._seam.bystander.warn_if_unused(has_trained)

    def _check_optimizer(self) -> None:
        """Refuse an optimizer that would be clipped twice, or that a rule does not suit."""
        optimizer = self.optimizer
        check_not_clipped(optimizer)
        check_own_clipping(optimizer)
        for route in self.config.router.routes:
            if route.clipper is not None:
                route.clipper.check_optimizer(optimizer)

    def _check_epochs(self) -> None:
        if self.clock is None and any(driver.needs_epoch for driver in self.config.drivers):
            raise ClipConfigError(
                'clip_grad: a schedule with by_epoch=True needs a runner that counts epochs; '
                'give begin and end in steps'
            )

    # -- called by the seam ----------------------------------------------------------------------
    def begin_step(self) -> None:
        """A step of the optimizer begins."""
        self.restore()
        self._updated = []
        self._begun = self.steps

    def begin_evaluation(self) -> None:
        """The closure of the step is about to compute gradients."""
        self._side.unhide()
        # A closure may run several times; count one step.
        self.steps = self._begun

    @torch.no_grad()
    def run_step(self) -> bool:
        """The gradients are complete: clip what the optimizer is about to step with.

        Returns:
            bool: whether the step is to be taken, as far as the host knows.
        """
        early, self._early = self._early, None
        return self._clip(can_fold=True) if early is None else early

    def hide_gradients(self) -> None:
        """Take the gradients away from a step that cannot be kept from running."""
        self._side.hide(self.book.params)

    @torch.no_grad()
    def end_step(self) -> None:
        """The optimizer has taken the step."""
        parts, self._updated = self._updated, []
        elements = sum(part.view.elements for part in parts if part.clipper is not None)
        for part in parts:
            update = None if part.clipper is None else part.clipper.after_step(part.view)
            if update is None or self.last_record is None:
                continue
            add_update(self.last_record, part, update, elements)
            for observer in self.observers:
                observer.after_update(part, update)

    def step_withheld(self) -> None:
        """A GradScaler found an infinite gradient and did not call the optimizer."""
        if self._early is not None:
            # clip_now() has recorded this step already.
            self._early = None
            return
        self.book.sync()
        grads = [p.grad for p in self.book.params if p.grad is not None]
        if not grads:
            # Without gradients there was no step to withhold.
            return
        nan, inf = float('nan'), float('inf')
        self._finish(make_record(grads[0].device, inf, 0.0, 0.0, nan, 0.0, 1.0), skipped=True)

    def restore(self) -> None:
        """Put back what the last step changed on the optimizer and its parameters."""
        self._side.restore()

    # -- called by wrappers ----------------------------------------------------------------------
    @torch.no_grad()
    def clip_now(self) -> None:
        """Clip at once, and not again in the coming step. A GradScaler must have unscaled already.

        If the gradients are not finite and the policy is ``skip``, they stay unchanged and the
        coming step is skipped.
        """
        self._early = None
        self._early = self._clip(can_fold=False)

    @property
    def is_clipped(self) -> bool:
        """Whether :meth:`clip_now` has clipped, and recorded, what the coming step will take."""
        return self._early is not None

    def forget(self) -> None:
        """The gradients are gone (``zero_grad``): a :meth:`clip_now` no longer counts."""
        self._early = None

    # -- the step --------------------------------------------------------------------------------
    def _clip(self, can_fold: bool) -> bool:
        """Clip; returns whether the step is to be taken."""
        self.book.sync()
        self._adopt_pending_state()
        step = self._collect(can_fold)
        self._seam.bystander.stepped(has_gradients=step is not None)
        if step is None:
            return True
        try:
            self._unscale_or_keep(step)
            if self._decide_on_device(step):
                return True
            self._measure(step)
            if not self._judge(step):
                return False
            self._record(step, self._decide_and_apply(step))
            return True
        finally:
            # zero_grad must be able to free the memory of the gradients.
            for _, view in step.views:
                view.release()

    def _collect(self, can_fold: bool) -> _Step | None:
        """The gradients of this step, loaded into their views; None if there are none."""
        views, parts, grads = self.book.collect()
        if not views:
            return None
        self._drive_schedules()
        # torch does not mix DTensors and plain tensors in one kernel.
        fused = can_fold and not self.book.has_dtensors and self._side.is_fused
        folds = fused and len(views) == 1
        # A skipped step drops its gradients, and no observer reads them before.
        early = can_fold and self.config.nonfinite == 'skip' and not self.observers
        for part, own in zip(views, parts, strict=True):
            part.view.load(
                own,
                folds=folds and part.is_global,
                may_write_early=early and len(views) == 1,
            )
        scale = self._side.grad_scale if fused else None
        scaler_inf = self._side.found_inf if fused else None
        return _Step(views, grads, fused, folds, scale, scaler_inf)

    def _unscale_or_keep(self, step: _Step) -> None:
        """Unscale, unless the one coefficient of a global rule takes the loss scale along."""
        if step.scale is not None and not (step.folds and step.views[0].is_global):
            foreach_scale_(step.grads, 1.0 / step.scale)
            self._side.divide_by(None)
            step.scale = None

    def _decide_on_device(self, step: _Step) -> bool:
        """Let one kernel decide, if there is one and the host need not know the outcome."""
        view = step.views[0].view
        if not (view.folds and can_run_on(step.grads[0].device)):
            return False
        if not self._is_left_to_device(True, step.views):
            return False
        decision = decide(step.views[0], step.scale, step.scaler_inf)
        if decision is None:
            return False
        if self.observers:
            measure = decision.measure(step.scale)
            self._before_clip(step, [measure], measure.norm)
        self._side.divide_by(decision.divisor)
        skips = self.config.nonfinite == 'skip'
        if skips:
            self._side.skip_where(decision.found_inf)
        if self.observers:
            self._after_clip(step, [decision.outcome])
        self._finish(decision.record, skipped=decision.found_inf if skips else False)
        return True

    def _measure(self, step: _Step) -> None:
        """What every rule reads, and the norm of all gradients, without the loss scale."""
        step.measures = [part.measure() for part in step.views]
        if step.scale is not None:
            step.measures = [step.measures[0].unscaled(step.scale)]
        step.norm = total_norm(step.views, step.measures, self._norm_type)

    def _judge(self, step: _Step) -> bool:
        """Find out whether the step is finite, and apply the policy; False: the step is over."""
        self._before_clip(step, step.measures, step.norm)
        step.finite = self._look(step)
        policy = self.config.nonfinite
        if step.finite.known is not False or policy == 'off':
            return True
        # A scaler that overflows lowers its scale and goes on: its infs are always skipped.
        by_scaler = step.scaler_inf is not None
        if policy == 'raise' and not by_scaler:
            raise NonFiniteGradientError(
                f'non-finite gradient at step {self.steps} in: {offenders(step.views)}. '
                "Set clip_grad nonfinite='skip' to leave such steps out"
            )
        if policy == 'zero' and not by_scaler:
            for grad in step.grads:
                torch.nan_to_num_(grad, nan=0.0, posinf=0.0, neginf=0.0)
            self._measure(step)
            return True
        record = make_record(step.norm.device, step.norm, 0.0, 0.0, float('nan'), 0.0, 1.0)
        self._finish(record, skipped=True)
        return False

    def _look(self, step: _Step) -> Finite:
        """Whether the gradients are finite; reads the device only if the host has to know."""
        value = host(step.norm)
        if value is not None and step.scaler_inf is None and math.isfinite(value):
            return Finite(True)
        flag = torch.isfinite(step.norm)
        if step.scaler_inf is not None:
            flag = flag & (step.scaler_inf.to(flag.device).reshape(()) == 0)
        known = host(flag)
        if known is None and self._is_left_to_device(step.fused, step.views):
            return Finite(None, flag)
        return Finite(bool(flag.item() if known is None else known))

    def _is_left_to_device(self, fused: bool, views: list[RoutedView]) -> bool:
        """Whether the host, which would have to wait, need not know if a step is finite."""
        policy = self.config.nonfinite
        return policy == 'off' or (policy == 'skip' and fused and self._side.can_skip(views))

    def _decide_and_apply(self, step: _Step) -> list[Outcome | None]:
        """Let every rule clip, apply what coefficient is left, and skip on the device."""
        outcomes = [
            None if part.clipper is None else part.clipper.clip(part.view, measure, step.finite)
            for part, measure in zip(step.views, step.measures, strict=True)
        ]
        for part, outcome in zip(step.views, outcomes, strict=True):
            if outcome is not None and outcome.coef is not None:
                self._apply(step, part, outcome.coef)
        flag = step.finite.flag
        if flag is not None and self.config.nonfinite == 'skip':
            self._side.skip_where((~flag).to(torch.float32))
        self._after_clip(step, outcomes)
        if any(part.clipper and part.clipper.bounds_updates for part in step.views):
            self._updated = step.views
        return outcomes

    def _apply(self, step: _Step, part: RoutedView, coef: Tensor) -> None:
        """Fold the coefficient into the optimizer, or multiply the gradients by it."""
        scale, value = step.scale, host(coef)
        if value is not None and value == 1 and (step.folds or scale is None):
            return
        if step.folds:
            # The kernel divides by grad_scale. In float64 until it is known to fit float32.
            divisor = coef.double().reciprocal()
            if scale is not None:
                divisor = divisor * scale.to(divisor.device)
            on_host = host(divisor)
            if on_host is None or on_host <= torch.finfo(torch.float32).max:
                self._side.divide_by(divisor.to(torch.float32))
                return
        if scale is not None:
            coef = coef / scale.to(coef.device)
            self._side.divide_by(None)
        part.view.backend.scale_all(coef)

    def _record(self, step: _Step, outcomes: list[Outcome | None]) -> None:
        """Make the record of a step that is taken."""
        known, flag = step.finite
        nonfinite: Tensor | float = float(known is False)
        skipped: Tensor | bool = False
        if flag is not None:
            nonfinite = 1.0 - flag.to(torch.float64)
            skipped = ~flag if self.config.nonfinite == 'skip' else False
        record = summarize(
            step.views, step.measures, outcomes, step.norm, nonfinite, self._norm_type
        )
        self._finish(record, skipped=skipped)

    def _finish(self, record: Tensor, skipped: bool | Tensor) -> None:
        """Count and report a step.

        Args:
            record: (6,) the record.
            skipped: whether the step is left out; a 0-d tensor, True or not 0 if so, where only the
                device knows.
        """
        self.steps += 1
        self.recent_skips.append(skipped)
        if self._buffers is not None:
            self._buffers.settle(skipped)
        self.last_record = record
        if self.on_record is not None:
            self.on_record(record)
        for observer in self.observers:
            observer.on_record(record)
        self.skips.add(skipped)

    def _before_clip(self, step: _Step, measures: list[Measure], norm: Tensor) -> None:
        for observer in self.observers:
            observer.before_clip(step.views, measures, norm, step.scale)

    def _after_clip(self, step: _Step, outcomes: list[Outcome | None]) -> None:
        for observer in self.observers:
            observer.after_clip(step.views, outcomes)

    def _drive_schedules(self) -> None:
        if self.config.drivers:
            iteration, epoch = self.clock() if self.clock is not None else (self.steps, 0)
            for driver in self.config.drivers:
                driver.set(iteration, epoch)

    def stats(self) -> dict[str, float]:
        """The log keys of the last step; {} before the first. Waits for the device."""
        return {} if self.last_record is None else record_to_dict(self.last_record)

    # -- state -----------------------------------------------------------------------------------
    def state_dict(self) -> dict[str, Any]:
        """Tensors, numbers, strings and containers; see :mod:`gclip_mm.clipping.step.state`."""
        if self._pending_state is not None:
            return self._pending_state
        self.book.sync()
        return dump_state(self.config.router, self.book, self._counts())

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned.

        If the names of the parameters are not known yet, the state is checked and taken at the
        first step.

        Raises:
            ValueError: the state is of another rule or of other parameters; says what differs.
        """
        self._pending_state = state
        if self.is_bound:
            self._adopt_pending_state()

    def _counts(self) -> dict[str, int]:
        return {'steps': self.steps, 'consecutive_skips': self.skips.count}

    def _adopt_pending_state(self) -> None:
        if self._pending_state is not None:
            state, self._pending_state = self._pending_state, None
            load_state(self.config.router, self.book, state)
            self.steps = state['steps']
            self.skips.count = state['consecutive_skips']
