"""The engine: clips the gradients of one optimizer, at one seam, whoever calls ``step``.

The seam is ``Optimizer.register_step_pre_hook``. By then a GradScaler has decided whether the step
is taken, and has unscaled the gradients, except for a fused optimizer, which unscales in its own
kernel and is handed ``optimizer.grad_scale`` and ``optimizer.found_inf``. The engine uses the same
two attributes: where one coefficient is to be applied to everything it goes into ``grad_scale``
(the *fold*), so that clipping costs one read of the gradients, and off the CPU a non-finite step is
skipped by ``found_inf`` without the host ever looking. Both are put back when the step is over.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..base import Measure, scale_all
from ..checks import ClipConfigError
from ..config.parse import ClipConfig, parse_clip_grad
from ..gradients.norms import host
from ..gradients.view import GradView
from ..kernels import can_run_on
from ..kernels.decision import Decision, decide
from .nonfinite import NonFiniteGradientError, SkipCounter, offenders
from .observers import StepObserver
from .optimizer.footprint import Footprint
from .optimizer.fused import MomentumWatch
from .optimizer.step_seam import StepSeam
from .parameters import ParameterBook
from .record import make_record, record_to_dict
from .state import dump_state, load_state
from .summary import is_global, measure, summarize, total_norm


class GradClipEngine:
    """Clips what ``optimizer`` is about to step with.

    Args:
        optimizer: any ``torch.optim.Optimizer`` that no other engine clips.
        clip_grad: a ``clip_grad`` config (:func:`gclip_mm.clipping.config.parse.parse_clip_grad`); it is
            not changed.
        model: gives the parameters their names and modules. Needed before the first step when the
            config has routes; may also come later, by :meth:`bind`.
        clock: returns ``(iteration, epoch)``, both from 0, for schedules; the default counts the
            steps of the optimizer and knows no epochs.
        on_record: called with the record (6,) of every step (:mod:`gclip_mm.clipping.step.record`).
        owner: the object that built the engine, such as an optimizer wrapper.

    Raises:
        ClipConfigError: a config that cannot be obeyed; an optimizer that is none, or is clipped
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
        if not isinstance(optimizer, Optimizer):
            raise ClipConfigError(
                f'clipping needs a torch.optim.Optimizer, got {type(optimizer).__name__}. An '
                'engine with an optimizer of its own (DeepSpeed, ColossalAI) clips by its own '
                'setting, such as gradient_clipping in the DeepSpeed config'
            )
        self.optimizer = optimizer
        self.config: ClipConfig = parse_clip_grad(clip_grad)
        self.clock = clock
        self.on_record = on_record
        self.owner = owner
        #: Called around the clipping of every step; empty, it costs nothing.
        self.observers: list[StepObserver] = []
        self.steps = self._begun = 0
        self.skips = SkipCounter(self.config.max_consecutive_skips)
        self.last_record: Tensor | None = None
        self.book = ParameterBook(optimizer, self.config.router)
        self._pending_state: dict[str, Any] | None = None
        self._footprint = Footprint(optimizer)
        # Set by clip_now(): the gradients are clipped already, and whether the step is to go on.
        self._early: bool | None = None
        self._momentum = MomentumWatch(optimizer)
        self._check_epochs()
        if self.on(optimizer) is not None:
            raise ClipConfigError(
                'clip_grad: this optimizer is clipped already, and would be twice: remove() the '
                "first handle, or give both rules to one dict(type='ChainClip', clips=[...])"
            )
        for route in self.config.router.routes:
            if route.clipper is not None:
                route.clipper.check_optimizer(optimizer)
        if model is not None:
            self.bind(model)
        # Last: an engine that could not be built must not stay on the optimizer.
        self._seam = StepSeam(self)

    # -- life cycle ------------------------------------------------------------------------------
    @staticmethod
    def on(optimizer: Optimizer) -> GradClipEngine | None:
        """The engine that clips for an optimizer, or None."""
        return StepSeam.engine_on(optimizer)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key != '_seam'}

    def __copy__(self) -> GradClipEngine:
        raise TypeError(
            'a shallow copy would be a second engine on the same optimizer: copy.deepcopy copies '
            'both'
        )

    def __setstate__(self, state: dict[str, Any]) -> None:
        # torch copies an optimizer without its hooks, and the copy would go on unclipped.
        vars(self).update(state)
        self.book.refresh(is_change=True)
        self._seam = StepSeam(self)

    @property
    def is_bound(self) -> bool:
        """Whether a model has given the parameters their names."""
        return self.book.is_bound

    def bind(self, model: nn.Module) -> None:
        """Take names and modules from the model.

        Raises:
            ClipConfigError: a route that matches no parameter.
        """
        self.book.bind(model)

    def remove(self) -> None:
        """Detach from the optimizer and leave no trace on it."""
        self.restore()
        self._seam.remove()

    def _check_epochs(self) -> None:
        if self.clock is None and any(driver.needs_epoch for driver in self.config.drivers):
            raise ClipConfigError(
                'clip_grad: a schedule with by_epoch=True needs a runner that counts epochs; '
                'give begin and end in steps'
            )

    # -- the step --------------------------------------------------------------------------------
    def begin_step(self) -> None:
        """A step of the optimizer begins."""
        self.restore()
        self._begun = self.steps

    def begin_evaluation(self) -> None:
        """Its closure is about to make gradients, perhaps not for the first time."""
        self._footprint.unhide()
        # However often it is asked for them, it is one step.
        self.steps = self._begun

    @torch.no_grad()
    def run_step(self) -> None:
        """The gradients are there: clip what the optimizer is going to step with."""
        early, self._early = self._early, None
        if early is None:
            self._clip(can_fold=True)
        elif not early:
            self._footprint.hide(self.book.params)

    @torch.no_grad()
    def clip_now(self) -> None:
        """Clip at once, and not again in the coming step. A GradScaler must have unscaled already.

        If the gradients are not finite and the policy is ``skip``, they stay as they are and the
        coming step is skipped.
        """
        self._early = True
        try:
            self._clip(can_fold=False)
        except BaseException:
            self._early = None
            raise

    @property
    def is_clipped(self) -> bool:
        """Whether :meth:`clip_now` has clipped, and recorded, what the coming step will take."""
        return self._early is not None

    def forget(self) -> None:
        """The gradients are gone (``zero_grad``): a :meth:`clip_now` no longer counts."""
        self._early = None

    def record_skipped(self) -> None:
        """Record a step that was never taken, because a GradScaler found an infinite gradient."""
        self.book.sync()
        grads = [p.grad for p in self.book.params if p.grad is not None]
        if not grads:
            # There was nothing to take a step with.
            return
        device = grads[0].device
        record = make_record(device, float('inf'), 0.0, 0.0, float('nan'), 0.0, 1.0)
        self._finish(record, skipped=True)

    def _clip(self, can_fold: bool) -> None:
        self.book.sync()
        self._adopt_pending_state()
        views, everything = self.book.collect()
        if not views:
            return
        try:
            self._clip_views(views, everything, can_fold)
        finally:
            # What zero_grad drops is memory for the next forward pass: nobody may hold on to it.
            for view in views:
                view.grads = []

    def _clip_views(self, views: list[GradView], everything: list[Tensor], can_fold: bool) -> None:
        self._drive_schedules()
        optimizer = self.optimizer
        fused = can_fold and self._is_fused()
        scale = getattr(optimizer, 'grad_scale', None) if fused else None
        scaler_inf = getattr(optimizer, 'found_inf', None) if fused else None
        folds = fused and len(views) == 1
        # A rule that looks at the gradients themselves has to see them unscaled.
        if scale is not None and not (folds and is_global(views[0])):
            torch._foreach_mul_(everything, 1.0 / scale)
            self._footprint.set(grad_scale=None)
            scale = None

        # A step that is left out drops its gradients, and nobody looks at them before.
        disposable = can_fold and self.config.nonfinite == 'skip' and not self.observers
        for view in views:
            view.folds = folds and is_global(view)
            view.is_disposable = disposable and len(views) == 1
        if views[0].folds and can_run_on(everything[0].device) and self._is_left_alone(True, views):
            decision = decide(views[0], scale, scaler_inf)
            if decision is not None:
                self._hand_over(views, decision, scale)
                return
        measures, norm = self._measure(views, scale)
        for observer in self.observers:
            observer.before_clip(views, measures, norm, scale)
        value = host(norm)
        if value is not None and scaler_inf is None and math.isfinite(value):
            # As nearly all steps of a CPU are.
            finite, known = None, True
        else:
            finite = torch.isfinite(norm)
            if scaler_inf is not None:
                finite = finite & (scaler_inf.to(finite.device).reshape(()) == 0)
            known = self._look(finite, fused, views)
        ok = None if known else finite
        if known is False:
            if self._on_nonfinite(views, everything, norm, scaler_inf is not None):
                return
            if self.config.nonfinite == 'zero':
                measures, norm = self._measure(views, scale)
                # The step is taken, but it is none for a rule to learn from.
                ok = torch.zeros((), dtype=torch.bool)

        outcomes = [
            None if view.route.clipper is None else view.route.clipper.clip(view, part, ok)
            for view, part in zip(views, measures, strict=True)
        ]
        for view, outcome in zip(views, outcomes, strict=True):
            if outcome is not None and outcome.coef is not None:
                self._apply(view, outcome.coef, folds, scale)
        if known is None and self.config.nonfinite == 'skip':
            self._footprint.set(found_inf=(~finite).to(torch.float32))
        for observer in self.observers:
            observer.after_clip(views, outcomes)
        nonfinite = 1.0 - finite.to(torch.float64) if known is None else float(not known)
        p = self.config.outer.norm_type
        left_to_device = known is None and self.config.nonfinite == 'skip'
        self._finish(
            summarize(views, measures, outcomes, norm, nonfinite, p),
            skipped=~finite if left_to_device else False,
        )

    def _measure(self, views: list[GradView], scale: Tensor | None) -> tuple[list[Measure], Tensor]:
        """What every route reads, and the norm of all gradients together."""
        measures = [measure(view) for view in views]
        norm = total_norm(views, measures, self.config.outer.norm_type)
        if scale is not None:
            # The gradients are still multiplied by the loss scale; the rule must not know.
            norm = norm / scale.to(norm.device)
            measures = [measures[0]._replace(norm=norm)]
        return measures, norm

    def _look(self, finite: Tensor, fused: bool, views: list[GradView]) -> bool | None:
        """Whether the step is finite; None: on the device only, and nobody needs to wait for it."""
        value = host(finite)
        if value is not None:
            return bool(value)
        if self._is_left_alone(fused, views):
            return None
        # An optimizer that knows no found_inf can only be kept from stepping by the host.
        return bool(finite.item())

    def _is_left_alone(self, fused: bool, views: list[GradView]) -> bool:
        """Whether the host, which would have to wait, need not know if a step is finite."""
        policy = self.config.nonfinite
        return policy == 'off' or (
            policy == 'skip' and fused and not self._momentum.is_lacking(views)
        )

    def _hand_over(self, views: list[GradView], decision: Decision, scale: Tensor | None) -> None:
        """Give the optimizer and those who watch what a kernel has decided on the device."""
        for observer in self.observers:
            observer.before_clip(views, [decision.measure], decision.measure.norm, scale)
        skips = self.config.nonfinite == 'skip'
        self._footprint.set(grad_scale=decision.divisor)
        if skips:
            self._footprint.set(found_inf=decision.found_inf)
        for observer in self.observers:
            observer.after_clip(views, [decision.outcome])
        self._finish(decision.record, skipped=decision.found_inf if skips else False)

    def _on_nonfinite(
        self, views: list[GradView], grads: list[Tensor], norm: Tensor, by_scaler: bool
    ) -> bool:
        """Deal with a non-finite step by the policy; True: the step is over."""
        policy = self.config.nonfinite
        if policy == 'off':
            return False
        # A scaler that overflows is at work, not broken: it lowers its scale and goes on.
        if policy == 'raise' and not by_scaler:
            raise NonFiniteGradientError(
                f'non-finite gradient at step {self.steps} in: {offenders(views)}. '
                "Set clip_grad nonfinite='skip' to leave such steps out"
            )
        if policy == 'zero' and not by_scaler:
            for grad in grads:
                torch.nan_to_num_(grad, nan=0.0, posinf=0.0, neginf=0.0)
            return False
        if self._early is True:
            self._early = False
        else:
            self._footprint.hide(self.book.params)
        record = make_record(norm.device, norm, 0.0, 0.0, float('nan'), 0.0, 1.0)
        self._finish(record, skipped=True)
        return True

    def _apply(self, view: GradView, coef: Tensor, folds: bool, scale: Tensor | None) -> None:
        value = host(coef)
        if value is not None and value == 1 and (folds or scale is None):
            return
        if folds:
            # grad_scale is what the kernel divides by. In float64 until it is known to fit.
            divisor = coef.double().reciprocal()
            if scale is not None:
                divisor = divisor * scale.to(divisor.device)
            on_host = host(divisor)
            if on_host is None or on_host <= torch.finfo(torch.float32).max:
                self._footprint.set(grad_scale=divisor.to(torch.float32))
                return
        if scale is not None:
            coef = coef / scale.to(coef.device)
            self._footprint.set(grad_scale=None)
        scale_all(view.grads, coef)

    # -- records ---------------------------------------------------------------------------------
    def _finish(self, record: Tensor, skipped: bool | Tensor = False) -> None:
        self.steps += 1
        self.last_record = record
        if self.on_record is not None:
            self.on_record(record)
        for observer in self.observers:
            observer.on_record(record)
        self.skips.add(skipped)

    def stats(self) -> dict[str, float]:
        """The log keys of the last step; {} before the first. Waits for the device."""
        return {} if self.last_record is None else record_to_dict(self.last_record)

    # -- the optimizer ---------------------------------------------------------------------------
    def _is_fused(self) -> bool:
        """Whether the optimizer takes ``grad_scale`` and ``found_inf`` from us."""
        optimizer = self.optimizer
        if self.book.has_dtensors:
            # torch does not mix DTensors and plain tensors in one kernel.
            return False
        return getattr(optimizer, '_step_supports_amp_scaling', False) and all(
            group.get('fused') for group in optimizer.param_groups
        )

    def _drive_schedules(self) -> None:
        if self.config.drivers:
            iteration, epoch = self.clock() if self.clock is not None else (self.steps, 0)
            for driver in self.config.drivers:
                driver.set(iteration, epoch)

    def restore(self) -> None:
        """Put back whatever the last step changed on the optimizer and its parameters."""
        self._footprint.restore()

    # -- state -----------------------------------------------------------------------------------
    def state_dict(self) -> dict[str, Any]:
        """Tensors, numbers, strings and containers of them; see :mod:`gclip_mm.clipping.step.state`."""
        if self._pending_state is not None:
            return self._pending_state
        self.book.sync()
        return dump_state(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned.

        Where the parameters' names are not known yet, it is checked and taken at the first step.

        Raises:
            ValueError: the state is of another rule or of other parameters; says what differs.
        """
        self._pending_state = state
        if self.is_bound:
            self._adopt_pending_state()

    def _adopt_pending_state(self) -> None:
        if self._pending_state is not None:
            state, self._pending_state = self._pending_state, None
            load_state(self, state)
