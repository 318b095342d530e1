"""What a clipping rule would have done to recorded steps, decided by the rule's own code."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import numpy as np
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from ..clipping.base import Finite, GlobalClipper, TensorClipper, UnitClipper
from ..clipping.config.parse import parse_clip_grad
from ..clipping.gradients.backend import Backend
from ..clipping.gradients.names import describe_params
from ..clipping.gradients.view import GradView
from ..clipping.rules.auto import OF_ONE_UPDATE, Auto
from ..engine.configs import optim_wrappers
from .gradient_stats import GradientStats, octave_sizes

_FINITE = Finite(True)


class Effect(NamedTuple):
    """What a rule does to S recorded steps with U units.

    Attributes:
        coefs: (S, U) the share that each unit keeps of its gradient, or of its movement for a rule
            that bounds updates. For a clamp, that of the whole parameter.
        live: (S, U) which units have a gradient, or have moved.
        before: (S,) norm of all gradients, or of the movement of all parameters.
        after: (S,) the same when the rule has acted.
        steps: share of the steps in which anything is held back.
        units: share of the units, of those with a gradient; None for a clamp, which does not know
            units.
        of_updates: whether these are numbers of updates instead of gradients.
    """

    coefs: np.ndarray
    live: np.ndarray
    before: np.ndarray
    after: np.ndarray
    steps: float
    units: float | None
    of_updates: bool


class Replay:
    """Recorded steps, to which rules can be applied.

    Args:
        stats: the steps.
        model: the model that they were recorded with, in the mode in which it is trained; its
            weights are not read.
        optimizer: its optimizer, at the learning rate for which the effects are wanted.
        lr: that base learning rate.

    Raises:
        ValueError: the steps were recorded with another model.
    """

    def __init__(
        self, stats: GradientStats, model: nn.Module, optimizer: Optimizer, lr: float
    ) -> None:
        params = [p for group in optimizer.param_groups for p in group['params']]
        infos = describe_params(params, model)
        owner = np.repeat(np.arange(len(infos)), [_units(info) for info in infos])
        if [i.name for i in infos] != stats.names or not np.array_equal(owner, stats.unit_param):
            raise ValueError('the statistics were recorded with another model or optimizer')
        self._stats, self._model, self._optimizer, self._lr = stats, model, optimizer, lr
        # In training, parameters without a gradient are not in a view either.
        used = np.flatnonzero(stats.grad.any(axis=0)).tolist()
        live = [infos[i] for i in used]
        self._used = used
        self._view = GradView(live, used, used, len(infos), backend=Backend(live))
        # The units of the view in the order of the statistics: by parameter.
        by_view = np.asarray(used)[self._view.backend.unit_owner.cpu().numpy()]
        self._place = np.flatnonzero(np.isin(stats.unit_param, used))[_ranks(by_view)]

    def effect(self, clip_grad: dict[str, Any]) -> Effect | None:
        """What a ``clip_grad`` does to the steps; None if the statistics do not tell.

        They do not for several rules at once (``exclude``, ``rules``), thresholds with a schedule,
        rules by element other than a symmetric clamp, and norms of an order other than 2.
        """
        parsed = parse_clip_grad(clip_grad)
        rule = parsed.outer
        if len(parsed.router.routes) > 1 or parsed.drivers or rule.core is not rule:
            return None
        rule.bind(self._optimizer, self._model)
        if rule.bounds_updates:
            return self._of_updates(clip_grad)
        if isinstance(rule, UnitClipper):
            return self._of_units(rule, self._stats.unit_grad)
        if isinstance(rule, GlobalClipper | TensorClipper) and rule.norm_type == 2:
            return self._of_norms(rule)
        clamp = rule.shortcut('fixed_range')
        if clamp is not None:
            low, high = clamp()
            if low is not None and high is not None and low == -high:
                return self._of_clamp(high)
        return None

    def _of_updates(self, clip_grad: dict[str, Any]) -> Effect:
        stats = self._stats
        rates = stats.lr / stats.lr_mult.max()
        # A step is proportional to its rate; the schedule's peak is what the advice is for.
        moved = stats.unit_move * (self._lr / rates)[:, None]
        # The bound of an update is that of a gradient which moves plain SGD as far.
        rule = parse_clip_grad({**clip_grad, 'side': 'gradient'}).outer
        assert isinstance(rule, Auto)  # the rule that has sides
        rule.reach *= OF_ONE_UPDATE
        rule.total *= OF_ONE_UPDATE
        infos = self._view.infos
        places = list(range(len(infos)))
        rule.bind(SGD([info.param for info in infos], lr=1.0), self._model)
        view = GradView(infos, places, places, len(infos), backend=self._view.backend)
        return self._of_units(rule, moved, view, of_updates=True)

    def _of_units(
        self,
        rule: UnitClipper,
        norms: np.ndarray,
        view: GradView | None = None,
        of_updates: bool = False,
    ) -> Effect:
        coefs = np.ones_like(norms)
        for step in range(len(norms)):
            parts = torch.from_numpy(norms[step, self._place])
            weights = torch.from_numpy(self._stats.unit_weight[step, self._place])
            decided, _ = rule.decide(parts, weights, view or self._view)
            coefs[step, self._place] = decided.double().numpy()
        return self._effect(coefs, norms, of_updates)

    def _of_norms(self, rule: GlobalClipper | TensorClipper) -> Effect:
        stats, used = self._stats, self._used
        coefs = np.ones((len(stats.norm), len(stats.names)))
        for step, (norm, grad) in enumerate(zip(stats.norm, stats.grad, strict=True)):
            decided: Tensor
            if isinstance(rule, GlobalClipper):
                decided, _ = rule.decide(torch.tensor(norm), _FINITE)
            else:
                decided, _ = rule.decide(torch.from_numpy(grad[used]), self._view, _FINITE)
            coefs[step, used] = decided.double().numpy()
        return self._effect(coefs[:, stats.unit_param], stats.unit_grad, False)

    def _of_clamp(self, clip_value: float) -> Effect:
        stats = self._stats
        kept = stats.value_clipped(clip_value) / np.where(stats.grad > 0, stats.grad, 1.0)
        kept[stats.grad == 0] = 1.0
        over = stats.elements[:, :, octave_sizes() > clip_value]
        effect = self._effect(kept[:, stats.unit_param], stats.unit_grad, False)
        return effect._replace(steps=float(over.any(axis=(1, 2)).mean()), units=None)

    def _effect(self, coefs: np.ndarray, norms: np.ndarray, of_updates: bool) -> Effect:
        live = norms > 0
        held = (coefs < 1) & live
        return Effect(
            coefs,
            live,
            np.linalg.norm(norms, axis=1),
            np.linalg.norm(norms * coefs, axis=1),
            float(held.any(axis=1).mean()),
            float(held.sum() / max(live.sum(), 1)),
            of_updates,
        )


def replay_config(cfg: Config, lr: float, stats: GradientStats) -> Replay:
    """The steps that were recorded with a config, for a base learning rate.

    Args:
        cfg: the config, with one optimizer; it is not changed.
        lr: the base learning rate.
        stats: the steps.

    Raises:
        ValueError: the steps were recorded with another model.
    """
    init_default_scope(cfg.get('default_scope') or 'mmengine')
    model = MODELS.build(copy.deepcopy(cfg.model))
    model.train()
    ((_, wrapper),) = optim_wrappers(cfg)
    # A plain wrapper builds the same optimizer on any device.
    keys = ('optimizer', 'constructor', 'paramwise_cfg')
    plain = {key: copy.deepcopy(wrapper[key]) for key in keys if wrapper.get(key) is not None}
    plain['optimizer']['lr'] = lr
    optimizer = build_optim_wrapper(model, Config(dict(o=dict(type='OptimWrapper', **plain))).o)
    return Replay(stats, model, optimizer.optimizer, lr)


def _units(info: Any) -> int:
    return int(np.prod(info.layout.shape(info.param)))


def _ranks(owners: np.ndarray) -> np.ndarray:
    """Where each entry stands when the entries are sorted by owner, in a stable way."""
    ranks = np.empty(len(owners), dtype=int)
    ranks[np.argsort(owners, kind='stable')] = np.arange(len(owners))
    return ranks
