"""Read-only callbacks around the clipping of a step."""

from __future__ import annotations

from torch import Tensor

from ..base import CoefClipper, Measure, Outcome, Update
from .parameters import RoutedView


class StepObserver:
    """Base class for read-only step callbacks (``GradClipEngine.observers``).

    Every method is optional. The calls of a step come in the order below, under
    ``torch.no_grad()``. An observer that reads a tensor's value makes the host wait for the device.
    A step skipped for a non-finite gradient has no ``after_clip``. A step that a loss scaler
    skipped has ``on_record`` alone.
    """

    def before_clip(
        self,
        views: list[RoutedView],
        measures: list[Measure],
        norm: Tensor,
        scale: Tensor | None,
    ) -> None:
        """The gradients are complete and unchanged.

        Args:
            views: the gradients, one view for each route that has some. Parameters without a
                gradient are in no view.
            measures: what the rule of each view has read, without the loss scale.
            norm: 0-d, the norm of all gradients, without the loss scale.
            scale: 0-d, the loss scale that the gradients still carry (fused optimizers), or None.
        """

    def after_clip(self, views: list[RoutedView], outcomes: list[Outcome | None]) -> None:
        """The rules have decided, and the optimizer has not stepped yet.

        Args:
            views: those of :meth:`before_clip`. Their gradients are clipped, except that the
                coefficient of a global rule may be folded into the optimizer.
            outcomes: what the rule of each view did; None for exempt parameters.
        """

    def on_record(self, record: Tensor) -> None:
        """The record (6,) of the step (:mod:`gclip_mm.clipping.step.record`)."""

    def after_update(self, part: RoutedView, update: Update) -> None:
        """The optimizer has stepped, and a rule that bounds the update has shortened it.

        Comes after :meth:`on_record`. The record holds the update's numbers by now.

        Args:
            part: the view of the rule; its gradients are released.
            update: what the rule did.
        """


def parameter_norms(part: RoutedView, measure: Measure, scale: Tensor | None) -> Tensor:
    """The 2-norm of each gradient of a view, (N,), without the loss scale.

    Args:
        part: the view.
        measure: what its rule has read; reused if it holds these norms.
        scale: 0-d, the loss scale that the gradients carry, or None.
    """
    clipper = part.clipper
    # Rules by units measure units. Only these kinds measure one number a tensor.
    per_tensor = clipper is None or isinstance(clipper.core, CoefClipper)
    if measure.parts is not None and per_tensor and (clipper is None or clipper.norm_type == 2):
        return measure.parts
    norms = part.view.norms()
    return norms if scale is None else norms / scale.to(norms.device)
