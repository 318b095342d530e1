"""Replace each tensor's norm by a smoothed one; keep its direction."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from ..base import Finite, TensorClipper
from ..checks import ClipConfigError, check_number
from ..config.registry import CLIPPERS
from ..gradients.norms import quiet
from ..gradients.view import GradView
from ..small_state import columns, remember, to_tensor

#: torch's optimizers without Adam's ``betas`` whose step does not depend on the gradient's scale.
_SCALE_FREE = ('Adadelta', 'Adafactor', 'Adagrad', 'Muon', 'RMSprop', 'Rprop')


class GradientStabilizerState(NamedTuple):
    """Statistics of each parameter of the route.

    Attributes:
        mean: (parameters,) float64, moving average of the norm, not corrected for its start at 0.
        square: (parameters,) float64, moving average of the squared norm, likewise.
        count: (parameters,) int64, number of gradients so far.
    """

    mean: Tensor
    square: Tensor
    count: Tensor  # type: ignore[assignment]  # shadows tuple.count; a key of checkpoints


@CLIPPERS.register_module()
class GradientStabilizer(TensorClipper):
    """Keep each tensor's direction and compute its norm from the norms so far.

    With ``n`` the norm of a tensor's gradient and ``t`` the number of gradients so far::

        mean = gamma1 * mean + (1 - gamma1) * n
        square = gamma2 * square + (1 - gamma2) * n**2
        g *= mean / (1 - gamma1**t) / sqrt(square / (1 - gamma2**t)) / n

    The new norm is about 1 in a steady run, for gradients of any scale. On a spike of any size it
    is below ``(1 - gamma1) / sqrt(1 - gamma2)``, about 0.95, plus the remainder of the past. The
    rule has no threshold to tune. It is the AdaGN of Stable-SPAM, which applies it after
    :class:`~gclip_mm.clipping.rules.adaclip.AdaClip` (``ChainClip``).

    Good for: Adam-like optimizers, whose step does not depend on the gradient's scale, at high
    learning rates or low precision. Bad for: SGD, which would step equally far for every tensor
    and every gradient, so that the rule rejects it; weight decay that is added to the gradient (in
    Adam, not in AdamW), which is stronger relative to smaller gradients. The rule raises small
    norms and does not bound the global norm.

    Args:
        gamma1: weight of the past in the average of the norm, at least 0 and below 1.
        gamma2: weight of the past in the average of its square, at least 0 and below 1.

    Raises:
        ClipConfigError: a value out of range; when it is attached, an optimizer that is not
            Adam-like.

    Source: Huang et al., "GradientStabilizer: Fix the Norm, Not the Gradient", arXiv 2502.17055v4;
    v1 and v2 are "Stable-SPAM: How to Train in 4-Bit More Stably than 16-Bit Adam".

    Example:
        >>> optim_wrapper = dict(
        ...     type='GClipOptimWrapper',
        ...     optimizer=dict(type='AdamW', lr=1e-4, weight_decay=0.05),
        ...     clip_grad=dict(type='GradientStabilizer'))
    """

    State = GradientStabilizerState
    per_param = dict(mean=0.0, square=0.0, count=0)
    source = 'arXiv 2502.17055v4'

    def __init__(self, gamma1: float = 0.7, gamma2: float = 0.9) -> None:
        check_number('gamma1', gamma1, low=0, high=1, open_high=True)
        check_number('gamma2', gamma2, low=0, high=1, open_high=True)
        self.gamma1 = gamma1
        self.gamma2 = gamma2

    @property
    def never_increases(self) -> bool:
        return False

    def check_optimizer(self, optimizer: Optimizer) -> None:
        """Reject an optimizer whose step grows with the gradient.

        Raises:
            ClipConfigError: an optimizer that is not Adam-like.
        """
        # ZeroRedundancyOptimizer keeps the optimizer that steps in ``optim``.
        inner = getattr(optimizer, 'optim', None)
        stepper = inner if isinstance(inner, Optimizer) else optimizer
        names = {cls.__name__ for cls in type(stepper).__mro__}
        if 'betas' not in stepper.defaults and names.isdisjoint(_SCALE_FREE):
            raise ClipConfigError(
                f'clip_grad: GradientStabilizer gives every gradient a norm of about 1, which '
                f'{type(stepper).__name__} would step by: use it with an Adam-like optimizer '
                '(Adam, AdamW, NAdam, RAdam, Lion, RMSprop, ...)'
            )

    def decide(self, norms: Tensor, view: GradView, finite: Finite) -> tuple[Tensor, Tensor]:
        state = self.state or GradientStabilizerState(
            torch.zeros(view.size, dtype=torch.float64, device=norms.device),
            torch.zeros(view.size, dtype=torch.float64, device=norms.device),
            torch.zeros(view.size, dtype=torch.int64, device=norms.device),
        )
        # A step that does not update the state may have non-finite gradients.
        with quiet():
            (n, mean, square, count), xp = columns(norms, view, *state)
            count = count + 1
            mean = self.gamma1 * mean + (1 - self.gamma1) * n
            square = self.gamma2 * square + (1 - self.gamma2) * n * n
            steady = mean / (1 - self.gamma1**count)
            spread = (square / (1 - self.gamma2**count)) ** 0.5
            # A tensor that has had only zero gradients keeps its zero.
            target = xp.where(spread > 0, steady / spread, 0.0)
            # A larger factor would be inf in float32. A subnormal gradient stays below its target.
            largest = torch.finfo(torch.float32).max
            coefs = xp.where(n > 0, xp.clip(target / n, None, largest), 1.0)
        if finite.learns:
            self.state = state
            remember(state, (mean, square, count), finite, view)
        return to_tensor(coefs, norms), to_tensor(target, norms)
