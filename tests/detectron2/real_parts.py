"""What the LazyConfig of ``test_real.py`` calls; imports the real Detectron2."""

from __future__ import annotations

from typing import Any

from detectron2.config import get_cfg
from detectron2.data import build_detection_train_loader
from detectron2.modeling import build_model


def _cfg(words: list[str]) -> Any:
    cfg = get_cfg()
    cfg.merge_from_list(list(words))
    return cfg


def model(words: list[str]) -> Any:
    return build_model(_cfg(words))


def loader(words: list[str]) -> Any:
    return build_detection_train_loader(_cfg(words))
