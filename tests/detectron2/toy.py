"""A model and a trainer for the tests; only public names of Detectron2 are used."""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import get_cfg
from detectron2.engine import DefaultTrainer
from torch import nn


class Toy(nn.Module):
    """A model with a batch norm; the first number of a batch says what goes wrong.

    ``RAISES``: a FloatingPointError, as Detectron2's RPN raises; ``NAN_LOSS``: a loss is NaN;
    ``NAN_METRIC``: an entry of the losses is NaN and has no gradient; ``BAD_BOX``: an
    AssertionError.
    """

    RAISES, NAN_LOSS, NAN_METRIC, BAD_BOX = 101.0, 102.0, 103.0, 104.0

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Linear(6, 5)
        self.norm = nn.BatchNorm1d(5)
        self.box_predictor = nn.ModuleDict({'cls_score': nn.Linear(5, 3)})

    def forward(self, data: torch.Tensor) -> dict[str, torch.Tensor]:
        fault = float(data.reshape(-1)[0])
        features = self.norm(self.backbone(data)).relu()
        if fault == self.RAISES:
            raise FloatingPointError('Predicted boxes or scores contain Inf/NaN.')
        assert fault != self.BAD_BOX, 'Input boxes to Box2BoxTransform are not valid!'
        scores = self.box_predictor['cls_score'](features)
        losses = {
            'loss_cls': scores.square().mean(),
            'loss_box': (scores - 1).abs().mean(),
            'accuracy': scores.detach().mean() * 0,
        }
        if fault == self.NAN_LOSS:
            losses['loss_box'] = losses['loss_box'] * float('nan')
        if fault == self.NAN_METRIC:
            losses['accuracy'] = losses['accuracy'] * float('nan')
        return losses


def make_model() -> Toy:
    torch.manual_seed(0)
    return Toy()


def batches(count: int, faults: dict[int, float] | None = None) -> list[torch.Tensor]:
    """``count`` batches (8, 6); those at the keys of ``faults`` begin with its value."""
    data = list(torch.randn(count, 8, 6, generator=torch.Generator().manual_seed(1)))
    for place, fault in (faults or {}).items():
        data[place][0, 0] = fault
    return data


def make_cfg(folder: Any, iterations: int = 6, *options: Any) -> Any:
    cfg = get_cfg()
    cfg.MODEL.DEVICE = 'cpu'
    cfg.OUTPUT_DIR = str(folder)
    cfg.SOLVER.MAX_ITER = iterations
    cfg.SOLVER.BASE_LR = 0.1
    cfg.SOLVER.WARMUP_ITERS = 0
    cfg.SOLVER.STEPS = ()
    cfg.merge_from_list(list(options))
    return cfg


class Trainer(DefaultTrainer):
    """The default trainer, with the model and the batches above."""

    data: list[torch.Tensor] | None = None

    @classmethod
    def build_model(cls, cfg: Any) -> nn.Module:
        return make_model()

    @classmethod
    def build_train_loader(cls, cfg: Any) -> list[torch.Tensor]:
        return cls.data if cls.data is not None else batches(cfg.SOLVER.MAX_ITER)


def trainer_of(data: list[torch.Tensor]) -> type[Trainer]:
    """A trainer class for these batches."""
    return type('Trainer', (Trainer,), {'data': data})


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """Copies of the parameters and buffers."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Whether all are bit-identical."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
