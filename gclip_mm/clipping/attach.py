"""Entry point for plain training loops, Lightning and Accelerate."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.optim import Optimizer

from .step.engine import GradClipEngine


class ClipHandle:
    """Returned by :func:`attach`; :meth:`remove` or the end of a ``with`` block detaches it."""

    def __init__(self, engine: GradClipEngine) -> None:
        self.engine = engine

    def stats(self) -> dict[str, float]:
        """The record of the last step; waits for the device.

        Returns:
            ``grad_norm``, ``grad_norm_post``, ``clip_coef``, ``clip_threshold``, ``clip_fraction``
            and ``nonfinite``; {} before the first step.
        """
        return self.engine.stats()

    def state_dict(self) -> dict[str, Any]:
        """The state of the rules; save it with ``torch.save`` next to the optimizer's state."""
        return self.engine.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore :meth:`state_dict`.

        Raises:
            ValueError: the state belongs to another rule or other parameters; the message names
                the difference.
        """
        self.engine.load_state_dict(state)

    def remove(self) -> None:
        """Stop clipping and remove the hooks from the optimizer. Warns if nothing was clipped."""
        self.engine.warn_if_unused()
        self.engine.remove()

    def __enter__(self) -> ClipHandle:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        if kind is None:
            self.engine.warn_if_unused()
        self.engine.remove()


def attach(
    optimizer: Optimizer, clip_grad: dict[str, Any], model: nn.Module | None = None
) -> ClipHandle:
    """Clip the gradients of an optimizer in every ``step`` from now on.

    Works under a ``GradScaler`` (do not call ``unscale_`` for clipping: the engine unscales where
    necessary), with closures, and with fused optimizers, which then clip in their own kernel.
    PyTorch copies an optimizer without its hooks: the result of ``copy.deepcopy`` is not clipped
    until it is attached as well.

    The gradients are clipped when ``step`` begins. What changes them before (a reduction, a scale,
    the clipping of Lightning or Accelerate) belongs before ``step``, or in a step pre-hook that is
    registered earlier. An optimizer that changes its gradients within ``step`` steps by gradients
    that ``clip_grad`` does not bound: there is a warning if it then calls the ``step`` of a parent
    class, as Horovod's does; other changes cannot be noticed. Nor can a call of
    ``clip_grad_norm_`` in the loop, which clips twice: remove it.

    Args:
        optimizer: any ``torch.optim.Optimizer``. A wrapper that has no step hooks (Accelerate's
            ``AcceleratedOptimizer``, ``PostLocalSGDOptimizer``) stands for the optimizer that it
            wraps.
        clip_grad: a rule and its keys (:func:`gclip_mm.clipping.config.parse.parse_clip_grad`); the
            dict is not changed.
        model: gives the parameters names and modules. ``exclude`` and ``rules`` need them, and AGC
            needs them to recognise transposed convolutions.

    Returns:
        ClipHandle: ``.stats()``, ``.state_dict()``, ``.load_state_dict()``, ``.remove()``.

    Raises:
        ClipConfigError: a ``ValueError`` that names the key and the valid ones, or says that
            ``optimizer`` is not an optimizer, is clipped already, or clips by itself.

    Example:
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1, fused=True)
        >>> handle = gclip_mm.attach(optimizer, dict(type='AGC', clip_factor=0.01), model=model)
        >>> for images, targets in loader:
        ...     optimizer.zero_grad()
        ...     loss_fn(model(images), targets).backward()
        ...     optimizer.step()
        >>> handle.stats()['clip_fraction']
    """
    engine = GradClipEngine(optimizer, clip_grad, model=model)
    return ClipHandle(engine)
