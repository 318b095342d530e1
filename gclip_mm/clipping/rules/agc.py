"""Adaptive gradient clipping, unit by unit."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

from ..base import Clipper, Measure, Outcome
from ..checks import check_number
from ..config.registry import CLIPPERS
from ..gradients.norms import accumulate_dtype, combine, host, np, tensor_norms
from ..gradients.sharded_units import UnitReduction
from ..gradients.view import GradView
from ..kernels import mark_written, units


@CLIPPERS.register_module(aliases=('agc', 'adaptive'))
class AGC(Clipper):
    """Keep the gradient of each unit small relative to the weights of that unit.

    For a unit with weights ``w`` and gradient ``g``: ``limit = clip_factor * max(|w|, eps)``, and
    where ``|g| > limit``, ``g *= limit / max(|g|, 1e-6)``. A unit is an output filter, a row of a
    linear layer, or a whole bias (:mod:`gclip_mm.clipping.gradients.units`). On a CPU, units of a step that
    is left out because others are not finite may have been scaled (docs/cpu.md).

    Good for: nets without batch norm, large batches and learning rates, with SGD: the largest step
    relative to the weight is at most about ``lr * clip_factor``. The best factor falls as one over
    the learning rate. Bad for: AdamW, whose step does not depend on the gradient's size, so that
    AGC only distorts its moments (the paper uses SGD throughout); the final classifier, which the
    paper leaves unclipped (``exclude``).

    Args:
        clip_factor: largest ratio of the gradient's norm to the weight's, at least 0.
        eps: stands in for the norm of a smaller weight, above 0, so that a weight initialised to
            zero still learns.

    Raises:
        ClipConfigError: a value out of range.

    Source: Brock et al., "High-Performance Large-Scale Image Recognition Without Normalization"
    (NFNets), arXiv 2102.06171, section 4.

    Example:
        >>> optim_wrapper = dict(
        ...     type='GClipOptimWrapper',
        ...     optimizer=dict(type='SGD', lr=0.02, momentum=0.9),
        ...     clip_grad=dict(type='AGC', clip_factor=0.01, exclude=[r'fc_cls']))
    """

    thresholds = ('clip_factor',)
    source = 'arXiv 2102.06171'

    def __init__(self, clip_factor: float = 0.01, eps: float = 1e-3) -> None:
        check_number('clip_factor', clip_factor, low=0)
        check_number('eps', eps, low=0, open_low=True)
        self.clip_factor = clip_factor
        self.eps = eps

    def measure(self, view: GradView) -> Measure:
        plan = _plan(view)
        kernels = units(view, plan.order)
        if kernels is not None:
            # A class that has inherited this may decide otherwise.
            early = view.is_disposable and type(self).clip is AGC.clip
            norms = kernels.measure(view, (self.eps, self.clip_factor) if early else None)
            if kernels.has_scaled:
                mark_written(view.grads)
            return Measure(combine(norms, exact=False), norms, kernels=kernels)
        norms = plan.norms(view.grads, plan.grad_norms, guard=True)
        if plan.reduction is not None:
            weights = plan.norms(view.params, plan.weight_norms)
            total, norms = plan.reduction.measure(norms, weights)
            return Measure(total, norms)
        total = combine(norms)
        value = host(total)
        if value is not None and value < 1e-15:
            # Squares so small are lost in float32; harmless for the limits, not for the record.
            total = combine(view.norms())
        return Measure(total, norms)

    @torch.no_grad()
    def clip(self, view: GradView, measure: Measure, ok: Tensor | None) -> Outcome:
        plan = _plan(view)
        kernels, norms = measure.kernels, measure.parts
        if kernels is not None:
            weights = kernels.weights
        elif plan.reduction is None:
            weights = plan.norms(view.params, plan.weight_norms)
        else:
            weights = plan.reduction.weights
        limits = weights.clamp(min=self.eps).mul_(self.clip_factor)
        over = norms > limits
        coefs = torch.where(over, limits / norms.clamp(min=1e-6), 1.0)
        if kernels is not None and kernels.has(view):
            kernels.scale(view, coefs)
            mark_written(view.grads)
        else:
            plan.scale(view.grads, coefs)
        if plan.reduction is not None:
            return Outcome(None, *plan.reduction.totals(norms * coefs, limits, over))
        post, bound = (combine(part, exact=False) for part in (norms * coefs, limits))
        return Outcome(None, post, bound, over.sum(), len(norms))


class _Plan:
    """Where the unit norms of each parameter lie in one flat vector; made once for a live set."""

    def __init__(self, view: GradView) -> None:
        params, layouts = view.params, view.layouts
        device = params[0].device
        # The widest of all: torch does not narrow a float64 tensor to a float32 norm.
        is_wide = any(accumulate_dtype(param) == torch.float64 for param in params)
        dtype = torch.float64 if is_wide else torch.float32
        self.layouts = layouts
        # Whole tensors first: torch norms all of them in one call.
        self.whole = [i for i, layout in enumerate(layouts) if layout.dims is None]
        self.rows = [i for i, layout in enumerate(layouts) if layout.dims is not None]
        self.order = self.whole + self.rows
        shapes = [layouts[i].shape(params[i]) for i in self.order]
        sizes = [math.prod(shape) for shape in shapes]
        # A rank may hold no unit of a sharded parameter, and reduceat knows no empty segment.
        self.filled = [k for k, size in enumerate(sizes) if size]
        starts = [0, *itertools.accumulate(sizes)]
        self.offsets = [starts[k] for k in self.filled]
        self.shapes = shapes
        self.sizes = sizes
        self.grad_norms = torch.empty(sum(sizes), dtype=dtype, device=device)
        self.weight_norms = torch.empty_like(self.grad_norms)
        self._slots: dict[int, list[Tensor]] = {
            id(buffer): self._cut(buffer)[len(self.whole) :]
            for buffer in (self.grad_norms, self.weight_norms)
        }
        self.reduction: UnitReduction | None = None
        if view.sharding is not None:
            self.reduction = UnitReduction(view, self.order, sizes, device)

    def _cut(self, flat: Tensor) -> list[Tensor]:
        """Views of a flat vector of unit norms, one for each parameter, ready to broadcast."""
        return [
            part.view(shape)
            for part, shape in zip(flat.split(self.sizes), self.shapes, strict=True)
        ]

    def norms(self, tensors: list[Tensor], buffer: Tensor, guard: bool = False) -> Tensor:
        """Unit norms of all tensors, written into ``buffer`` (U,) where nothing overflows."""
        whole = len(self.whole)
        if whole:
            firsts = tensor_norms([tensors[i] for i in self.whole])
            buffer[:whole] = firsts
        for i, slot in zip(self.rows, self._slots[id(buffer)], strict=True):
            layout, tensor = self.layouts[i], tensors[i]
            norms = layout.split(tensor)
            if tensor.device != buffer.device:
                slot.copy_(layout.norms(tensor, buffer.dtype))
            else:
                torch.linalg.vector_norm(
                    norms, dim=layout.dims, keepdim=True, dtype=buffer.dtype, out=slot
                )
        values = host(buffer)
        if not guard or values is None or buffer.dtype == torch.float64:
            return buffer
        if np.isfinite(values).all():
            return buffer
        wide = buffer.double()
        if whole:
            wide[:whole] = firsts
        for i, slot in zip(self.rows, self._cut(wide)[whole:], strict=True):
            if not np.isfinite(host(slot)).all():
                slot.copy_(self.layouts[i].norms(tensors[i], torch.float64))
        return wide

    def scale(self, tensors: list[Tensor], coefs: Tensor) -> None:
        """Multiply every unit in place by its coefficient (U,)."""
        cut = self._cut(coefs)
        values = host(coefs)
        touched = self.filled
        if values is not None and touched:
            clipped = np.minimum.reduceat(values, self.offsets) < 1
            touched = [k for k, yes in zip(touched, clipped.tolist(), strict=True) if yes]
        for k in touched:
            i = self.order[k]
            self.layouts[i].split(tensors[i]).mul_(cut[k].to(tensors[i].device))


def _plan(view: GradView) -> _Plan:
    plan = view.cache.get('agc')
    if plan is None:
        plan = view.cache['agc'] = _Plan(view)
    return plan
