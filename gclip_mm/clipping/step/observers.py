"""Somebody who watches the steps of an engine: telemetry, without a hand on the gradients."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from ..base import TensorClipper

if TYPE_CHECKING:
    from ..base import Measure, Outcome
    from ..gradients.view import GradView


class StepObserver:
    """Base of what may be put into ``GradClipEngine.observers``; every method may be left out.

    The three calls of a step come in the order below, under ``torch.no_grad()``, and on the device
    only: an observer that reads a tensor's value makes the host wait. A step that is skipped for a
    non-finite gradient has no ``after_clip``; one that a loss scaler kept from the optimizer has
    ``on_record`` alone.
    """

    def before_clip(
        self,
        views: list[GradView],
        measures: list[Measure],
        norm: Tensor,
        scale: Tensor | None,
    ) -> None:
        """The gradients are complete and untouched.

        Args:
            views: the gradients, one view for each route that has some; parameters without a
                gradient are in none.
            measures: what each view's rule has read.
            norm: 0-d, the norm of all gradients, unscaled.
            scale: the loss scale that the gradients still carry (fused optimizers), or None.
        """

    def after_clip(self, views: list[GradView], outcomes: list[Outcome | None]) -> None:
        """The rules have decided, the optimizer has not stepped.

        Args:
            views: those of :meth:`before_clip`. Their gradients are clipped, except that the
                coefficient of a rule that gives one may be folded into the optimizer.
            outcomes: what each view's rule has done; None for exempt parameters.
        """

    def on_record(self, record: Tensor) -> None:
        """The record (6,) of the step (:mod:`gclip_mm.clipping.step.record`)."""


def parameter_norms(view: GradView, measure: Measure) -> Tensor:
    """The 2-norm of each gradient of a view, (N,), from the rule's own measurement if it has them.

    Carries the loss scale if the gradients do.
    """
    clipper = view.route.clipper
    # Rules that measure units keep them in an order of their own; only these promise one number
    # for each tensor.
    per_tensor = clipper is None or clipper.is_global or isinstance(clipper, TensorClipper)
    if measure.parts is not None and per_tensor and (clipper is None or clipper.norm_type == 2):
        return measure.parts
    return view.norms()
