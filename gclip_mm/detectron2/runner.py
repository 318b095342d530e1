"""Runs a Detectron2 script that is not edited, with clipping."""

from __future__ import annotations

import argparse
import functools
import importlib
import importlib.util
import logging
import runpy
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import detectron2.config.defaults
import detectron2.engine
from detectron2.engine import DefaultTrainer, SimpleTrainer, TrainerBase

from ..clipping.checks import ClipConfigError
from ..clipping.config.parse import parse_clip_grad
from ..clipping.step.engine import GradClipEngine
from .clip import clip
from .hook import check_trainer
from .rule import add_gclip_config, read_rule

_logger = logging.getLogger('detectron2.gclip_mm')


def main(arguments: Sequence[str] | None = None) -> None:
    """``python -m gclip_mm.detectron2 [--clip RULE] [--import MODULE] SCRIPT [ARGUMENT ...]``."""
    parser = argparse.ArgumentParser(
        prog='python -m gclip_mm.detectron2',
        description=(
            'Runs a script whose trainer is a SimpleTrainer, AMPTrainer or DefaultTrainer of '
            'Detectron2, or derives from one, with gradient clipping; spawned ranks included. '
            'Beside --clip, the config key SOLVER.GCLIP is known.'
        ),
    )
    parser.add_argument(
        '--clip',
        metavar='RULE',
        help="such as Auto or 'type=AGC,clip_factor=0.01'; without it, SOLVER.GCLIP of the config",
    )
    parser.add_argument(
        '--import',
        dest='imports',
        action='append',
        default=[],
        metavar='MODULE',
        help='a module, or the path of a .py file, to import before the script starts, on every '
        'rank: one that registers data sets, for example; may be given several times',
    )
    parser.add_argument('script', help='path of the script')
    parser.add_argument('arguments', nargs=argparse.REMAINDER, help='its arguments')
    args = parser.parse_args(arguments)
    if not Path(args.script).is_file():
        parser.error(f'there is no script {args.script!r}')
    try:
        setting = Setting(args.clip, tuple(_importable(name) for name in args.imports))
    except ClipConfigError as error:
        parser.error(str(error))
    sys.argv = [args.script, *args.arguments]
    # As Python does for a script.
    sys.path[0] = str(Path(args.script).resolve().parent)
    setting.install()
    runpy.run_path(args.script, run_name='__main__')
    if not setting.has_launched:
        setting.warn_if_unused()


def _importable(name: str) -> str:
    """A module name as it is; the path of a file made absolute, for ranks in any folder.

    Raises:
        ClipConfigError: the file does not exist.
    """
    if not name.endswith('.py'):
        return name
    if not Path(name).is_file():
        raise ClipConfigError(f'--import: there is no file {name!r}')
    return str(Path(name).resolve())


class Setting:
    """What the runner was told; a spawned rank gets a copy.

    Args:
        rule: the value of ``--clip``; None: ``SOLVER.GCLIP`` decides.
        imports: modules and files to import.

    Raises:
        ClipConfigError: an invalid rule.
    """

    def __init__(self, rule: str | None, imports: tuple[str, ...] = ()) -> None:
        if rule is not None:
            parse_clip_grad(read_rule(rule) or {})
        self.rule = rule
        self.imports = imports
        # Whether this process has installed it, clips, and has left the training to launch().
        self._is_installed = self._clips = self.has_launched = False

    def install(self) -> None:
        """Have this process clip; a second call changes nothing.

        Methods of Detectron2's classes are wrapped, because a spawned rank has imported the script,
        and with it names from Detectron2, before it gets here.
        """
        if self._is_installed:
            return
        self._is_installed = True
        add_gclip_config(detectron2.config.defaults._C)
        _wrap(SimpleTrainer, '__init__', self._after_simple)
        _wrap(DefaultTrainer, '__init__', self._after_default)
        _wrap(TrainerBase, 'before_train', self._at_start)
        # The package has the function under the name of the module that defines it.
        launch = detectron2.engine.launch
        launching = functools.wraps(launch)(functools.partial(self._launch, launch))
        detectron2.engine.launch = launching
        sys.modules['detectron2.engine.launch'].launch = launching  # type: ignore[attr-defined]
        for name in self.imports:
            _import(name)

    def __getstate__(self) -> dict[str, Any]:
        return {'rule': self.rule, 'imports': self.imports}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def _after_simple(self, trainer: Any, *_: Any, **__: Any) -> None:
        if self.rule is not None:
            clip(trainer.optimizer, self.rule, trainer.model)

    def _after_default(self, trainer: Any, cfg: Any, *_: Any, **__: Any) -> None:
        rule = cfg.SOLVER.get('GCLIP', '')
        if rule and self.rule is not None:
            raise ClipConfigError(
                f'both --clip {self.rule!r} and SOLVER.GCLIP {rule!r} are set: leave one of them '
                'out'
            )
        # A project may hand cfg to clip() by itself.
        if rule and GradClipEngine.on(trainer.optimizer) is None:
            clip(trainer.optimizer, rule, trainer.model)

    def _at_start(self, trainer: Any) -> None:
        check_trainer(trainer)
        engine = GradClipEngine.on(trainer.optimizer)
        if engine is not None:
            self._clips = True
            _logger.info('Gradients are clipped: %s', engine.config.raw)

    def _launch(self, launch: Callable[..., Any], main_func: Any, *args: Any, **kwargs: Any) -> Any:
        self.has_launched = True
        return launch(Rank(self, main_func), *args, **kwargs)

    def warn_if_unused(self) -> None:
        """Warn if the script has trained in this process without clipping."""
        if not self._clips and '--eval-only' not in sys.argv:
            _logger.warning(
                'The runner has clipped nothing. Either there is no rule (--clip, or SOLVER.GCLIP '
                'of a DefaultTrainer), or the script has no trainer but a loop of its own: that '
                'needs one line, optimizer = gclip_mm.detectron2.clip(optimizer, rule, model)'
            )


class Rank:
    """The main function of a script, in a process that ``launch`` may have spawned.

    Args:
        setting: what to install there.
        main_func: the main function.
    """

    def __init__(self, setting: Setting, main_func: Callable[..., Any]) -> None:
        self.setting = setting
        self.main_func = main_func

    def __call__(self, *args: Any) -> Any:
        self.setting.install()
        result = self.main_func(*args)
        self.setting.warn_if_unused()
        return result


def _wrap(cls: type, name: str, then: Callable[..., None]) -> None:
    """Have a method of a class call a function, with the same arguments, when it has returned."""
    stock = getattr(cls, name)

    @functools.wraps(stock)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = stock(self, *args, **kwargs)
        then(self, *args, **kwargs)
        return result

    setattr(cls, name, method)


def _import(name: str) -> None:
    """Import a module by its name, or a file by its path."""
    if not name.endswith('.py'):
        importlib.import_module(name)
        return
    spec = importlib.util.spec_from_file_location(Path(name).stem, name)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
