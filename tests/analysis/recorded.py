"""Records steps of a small model for the tests of the advisor."""

from __future__ import annotations

import torch

from gclip_mm.analysis.gradient_stats import GradientRecorder
from gclip_mm.clipping.base import Measure
from gclip_mm.clipping.config.routes import Route
from gclip_mm.clipping.gradients.names import describe_params
from gclip_mm.clipping.gradients.view import GradView
from gclip_mm.clipping.step.parameters import RoutedView


def record(model, steps, optimizer=None, make_grads=None, is_taken=False):
    """Statistics of steps whose gradients ``make_grads`` sets; the optimizer may take them."""
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.1)
    recorder = GradientRecorder(optimizer, model)
    params = [p for group in optimizer.param_groups for p in group['params']]
    infos = describe_params(params, model)
    for step in range(steps):
        make_grads(step)
        live = [i for i, p in enumerate(params) if p.grad is not None]
        view = GradView([infos[i] for i in live], live, live, len(params))
        view.load([params[i].grad for i in live])
        part = RoutedView(Route(None, None, ''), view)
        recorder.before_clip([part], [Measure(torch.zeros(()))], torch.zeros(()), None)
        if is_taken:
            optimizer.step()
        recorder.end_step(1.0)
    return recorder.stats()
