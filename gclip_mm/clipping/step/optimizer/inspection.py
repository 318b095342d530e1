"""What can be found out about an optimizer when clipping is attached.

Clipping needs an optimizer whose ``step`` runs torch's step hooks. Objects that have no hooks are
unwrapped or refused, and so are optimizers that clip by themselves. Nothing is changed on an
optimizer that is refused.
"""

from __future__ import annotations

import types
import warnings
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

from torch.optim import Optimizer

from ...checks import ClipConfigError

_HOOK_TABLES = ('_optimizer_step_pre_hooks', '_optimizer_step_post_hooks')
#: Settings of optimizers that clip by themselves; None and 0 turn them off.
_CLIPPING_SETTINGS = ('max_grad_norm', 'clip_grad_norm', 'max_norm')
#: Libraries whose engines step by themselves; the optimizer within must not be clipped.
_FOREIGN_ENGINES = ('deepspeed', 'colossalai')
#: Modules whose functions around ``step`` are known to call what they wrap.
_PASSING_ON = ('lr_scheduler', 'param_scheduler')


# -- wrappers ------------------------------------------------------------------------------------
def clippable(thing: object) -> Optimizer:
    """The optimizer whose step hooks are to clip for an object.

    It is the object itself, if it is an optimizer with step hooks. A wrapper that inherits from
    ``torch.optim.Optimizer`` but has no hooks (Accelerate's ``AcceleratedOptimizer``, torch's
    ``PostLocalSGDOptimizer``), or that shares those of the optimizer that it wraps (Lightning's
    ``LightningOptimizer``), stands for the one optimizer that it wraps: its gradients are complete
    when that optimizer steps, and what the wrapper does around it (an average of the parameters
    over ranks) has to happen in every step.

    Raises:
        ClipConfigError: it cannot be clipped; the message says which object to give.
    """
    if not isinstance(thing, Optimizer):
        raise ClipConfigError(
            f'clipping needs a torch.optim.Optimizer, got {type(thing).__name__}' + _advice(thing)
        )
    inner = inner_optimizers(thing)
    if has_hooks(thing):
        table = thing._optimizer_step_pre_hooks
        shared = [o for o in inner.values() if getattr(o, _HOOK_TABLES[0], None) is table]
        return clippable(shared[0]) if len(shared) == 1 else thing
    name = type(thing).__name__
    if len(inner) == 1:
        ((attribute, optimizer),) = inner.items()
        if _parameter_ids(optimizer) == _parameter_ids(thing):
            return clippable(optimizer)
        raise ClipConfigError(
            f'{name} has no step hooks, and the optimizer in its .{attribute} has other '
            f'parameters: attach to .{attribute}, and to every other optimizer that it steps'
        )
    if inner:
        raise ClipConfigError(
            f'{name} has no step hooks, because it only wraps other optimizers: attach to each of '
            f'them ({", ".join(f".{attribute}" for attribute in inner)})'
        )
    raise ClipConfigError(
        f'{name} cannot be clipped: it has no step hooks '
        f'({", ".join(_missing_tables(thing))}), because its '
        'constructor does not call torch.optim.Optimizer.__init__. Call it there, or attach to the '
        'optimizer that it steps'
    )


def _advice(thing: object) -> str:
    """What to do with an object that is no optimizer; an empty string if that is not known."""
    if type(thing).__module__.split('.')[0] in _FOREIGN_ENGINES:
        return (
            '. An engine with an optimizer of its own (DeepSpeed, ColossalAI) clips by its own '
            'setting, such as gradient_clipping in the DeepSpeed config'
        )
    names = [f'.{attribute}' for attribute in inner_optimizers(thing)]
    return f'. Give the optimizer within it: {" or ".join(names)}' if names else ''


def has_hooks(optimizer: Optimizer) -> bool:
    """Whether an optimizer has what torch's step hooks are kept in."""
    return not _missing_tables(optimizer)


def _missing_tables(optimizer: Optimizer) -> list[str]:
    # torch refers weakly to the table, which a plain dict does not allow.
    return [t for t in _HOOK_TABLES if not isinstance(getattr(optimizer, t, None), OrderedDict)]


def inner_optimizers(thing: object) -> dict[str, Optimizer]:
    """The optimizers that an object holds, each by the first attribute that holds it."""
    found: dict[str, Optimizer] = {}
    for name, value in getattr(thing, '__dict__', {}).items():
        is_new = isinstance(value, Optimizer) and value is not thing
        if is_new and all(value is not other for other in found.values()):
            found[name] = value
    return found


def _parameter_ids(optimizer: Optimizer) -> list[int]:
    return [id(p) for group in optimizer.param_groups for p in group['params']]


# -- steps ---------------------------------------------------------------------------------------
#: The function that runs the hooks, with the optimizer as its first argument; one for all classes.
HOOKS_RUNNER = Optimizer.profile_hook_step(lambda self: None).__code__


def is_hooked(step: Any) -> bool:
    """Whether a step function of a class runs the step hooks.

    torch marks such a function as ``hooked``. The mark alone does not say it: before torch 2.3
    torch.compile takes the function that runs the hooks away and leaves the mark.
    """
    if not hasattr(step, 'hooked'):
        return False
    while step is not None and getattr(step, '__code__', None) is not HOOKS_RUNNER:
        step = getattr(step, '__wrapped__', None)
    return step is not None


def hook_steps(optimizer: Optimizer) -> None:
    """Have every ``step`` along the class hierarchy run the step hooks.

    torch does so in its own constructor, and only for the class of the instance. It is needed for
    optimizers that do not call that constructor (timm's Lookahead), and for parent classes, so that
    a gradient that is changed before ``super().step()`` is noticed.
    """
    optimizer._patch_step_function()
    cls: Any
    for cls in type(optimizer).__mro__:
        step = vars(cls).get('step')
        is_parent = cls is not Optimizer and issubclass(cls, Optimizer)
        if is_parent and isinstance(step, types.FunctionType) and not is_hooked(step):
            hooked: Any = Optimizer.profile_hook_step(step)
            hooked.hooked = True
            cls.step = hooked


def runs_hooks(step: Any, optimizer: Optimizer) -> bool:
    """Whether a ``step`` found on the instance is known to call the step of the class.

    A scheduler wraps the step of the class. What anything else has put on the instance may update
    the parameters by itself.
    """
    own = [vars(cls).get('step') for cls in type(optimizer).__mro__]
    while step is not None:
        step = getattr(step, '__func__', step)
        if is_hooked(step) and any(step is function for function in own):
            return True
        module = getattr(step, '__globals__', {}).get('__name__', '')
        if module.split('.')[-1] not in _PASSING_ON:
            return False
        step = getattr(step, '__wrapped__', None)
    return False


# -- optimizers that clip ------------------------------------------------------------------------
def check_own_clipping(optimizer: Optimizer) -> None:
    """Refuse an optimizer whose class is made to clip, and warn of one that seems to clip.

    Raises:
        ClipConfigError: Detectron2's ``SOLVER.CLIP_GRADIENTS``, or Mask2Former's
            FullModelGradientClippingOptimizer.
    """
    for each in (optimizer, *inner_optimizers(optimizer).values()):
        for cls in type(each).__mro__:
            step = vars(cls).get('step')
            if cls is Optimizer or step is None:
                continue
            calls = [name for name in _names(step) if _is_of_clipping(name)]
            if calls and cls.__name__.endswith(_CLIPPING_CLASSES):
                raise ClipConfigError(
                    f'clip_grad: {cls.__name__} clips by itself, and its gradients would be '
                    'clipped twice: set cfg.SOLVER.CLIP_GRADIENTS.ENABLED = False before the '
                    'optimizer is built'
                )
            if calls:
                _warn_of_own_clipping(each, f'its step calls {calls[0]}')
                break
        else:
            _check_settings(each)


def check_trainer(model: object) -> None:
    """Refuse a LightningModule whose Trainer clips.

    Raises:
        ClipConfigError: ``Trainer(gradient_clip_val=...)`` is set.
    """
    # The public property raises where no Trainer is attached.
    trainer = getattr(model, '_trainer', None)
    value = getattr(trainer, 'gradient_clip_val', None)
    if isinstance(value, int | float) and value:
        raise ClipConfigError(
            f'clip_grad: the Trainer of {type(model).__name__} clips by itself, and the gradients '
            f'would be clipped twice: remove gradient_clip_val={value!r} from Trainer(...)'
        )


#: ``<Name>WithGradientClip`` is generated by Detectron2; the other is Mask2Former's.
_CLIPPING_CLASSES = ('WithGradientClip', 'FullModelGradientClippingOptimizer')


def _is_of_clipping(name: str) -> bool:
    """Whether a step that refers to this name clips: torch's functions, Detectron2's clippers."""
    return name.startswith(('clip_grad_norm', 'clip_grad_value')) or name.endswith('_clipper')


def _check_settings(optimizer: Optimizer) -> None:
    for group in optimizer.param_groups:
        for name in _CLIPPING_SETTINGS:
            value = group.get(name, getattr(optimizer, name, None))
            if isinstance(value, int | float) and value:
                _warn_of_own_clipping(optimizer, f'{name}={value!r}')
                return


def _warn_of_own_clipping(optimizer: Optimizer, sign: str) -> None:
    warnings.warn(
        f'{type(optimizer).__name__} seems to clip by itself ({sign}), after clip_grad has '
        'clipped: turn one of them off',
        stacklevel=2,
    )


def _names(step: Any) -> Iterator[str]:
    """The names that a step function refers to, those of the functions within it included."""
    while hasattr(step, '__wrapped__'):
        step = step.__wrapped__
    codes = [code] if (code := getattr(step, '__code__', None)) is not None else []
    while codes:
        code = codes.pop()
        yield from code.co_names
        yield from code.co_freevars
        codes.extend(const for const in code.co_consts if isinstance(const, types.CodeType))
