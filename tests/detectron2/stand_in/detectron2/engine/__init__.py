"""Trainers, hooks and the launcher; the function ``launch`` hides the module of its name."""

from . import hooks
from .defaults import (
    DefaultTrainer,
    create_ddp_model,
    default_argument_parser,
    default_setup,
    default_writers,
)
from .launch import launch
from .train_loop import AMPTrainer, HookBase, SimpleTrainer, TrainerBase

__all__ = [
    'AMPTrainer',
    'DefaultTrainer',
    'HookBase',
    'SimpleTrainer',
    'TrainerBase',
    'create_ddp_model',
    'default_argument_parser',
    'default_setup',
    'default_writers',
    'hooks',
    'launch',
]
