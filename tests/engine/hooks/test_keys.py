"""A misspelt key of a hook is named, together with the valid ones."""

from __future__ import annotations

import pytest
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from gclip_mm import ClipConfigError
from gclip_mm.engine.hooks.keys import reject_unknown_keys, valid_keys

MMDET_HOOKS = pytest.importorskip('mmdet.registry').HOOKS

#: Every registered hook of this package, by the registry that builds it.
OURS = {
    name: registry
    for registry in (HOOKS, MMDET_HOOKS)
    for name, cls in registry.module_dict.items()
    if cls.__module__.startswith('gclip_mm.')
}


def test_all_hooks_of_the_package_are_found():
    assert {
        'GClipCheckpointHook',
        'GClipHook',
        'GClipMonitorHook',
        'GClipRNGStateHook',
        'GClipRuntimeInfoHook',
        'GClipSpikeHook',
        'FrequencyBiasHook',
        'SceneGraphCheckHook',
    } <= set(OURS)


@pytest.mark.parametrize('name', sorted(OURS))
def test_unknown_key_is_named_with_the_valid_keys(name):
    keys = valid_keys(OURS[name].get(name))
    listed = f'Valid keys: {", ".join(keys)}' if keys else 'It takes no keys'
    misspelt = f'{keys[0]}_' if keys else 'interval'
    # By the class: a registry would search the default scope of an earlier run.
    with pytest.raises(ClipConfigError) as caught:
        OURS[name].get(name)(**{misspelt: 1})
    assert f'{name} has no key {misspelt!r}.' in str(caught.value)
    assert listed in str(caught.value)
    assert not keys or f'Did you mean {keys[0]!r}?' in str(caught.value)


def test_checkpoint_hook_accepts_the_keys_of_the_stock_hook():
    keys = valid_keys(HOOKS.get('GClipCheckpointHook'))
    assert {'interval', 'max_keep_ckpts', 'backend_args', 'save_best'} <= set(keys)
    hook = HOOKS.get('GClipCheckpointHook')(interval=3, max_keep_ckpts=2)
    assert (hook.interval, hook.max_keep_ckpts) == (3, 2)


def test_subclass_with_its_own_keys_builds():
    @reject_unknown_keys
    class Parent(Hook):
        def __init__(self, interval: int = 1) -> None:
            self.interval = interval

    class Child(Parent):
        def __init__(self, extra: int, **kwargs: int) -> None:
            super().__init__(**kwargs)
            self.extra = extra

    child = Child(extra=2, interval=3)
    assert (child.extra, child.interval) == (2, 3)
    with pytest.raises(ClipConfigError, match="Did you mean 'interval'"):
        Child(extra=2, intervall=3)


@pytest.mark.parametrize('key', ['max_norm', 'clip_factor', 'clip_value', 'exclude'])
def test_key_of_a_rule_is_moved_into_clip_grad(key):
    with pytest.raises(ClipConfigError, match=rf'write .*clip_grad=dict\({key}=1\)'):
        HOOKS.get('GClipHook')(**{key: 1})
