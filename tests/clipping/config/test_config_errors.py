"""Invalid `clip_grad` configs: each raises one error that names the key and the valid values."""

import copy
import math

import pytest
import torch
from torch import nn

from gclip_mm import ClipConfigError, attach
from gclip_mm.clipping import CLIPPERS, ClipConfig, NormClip, parse_clip_grad

GOOD = dict(type='NormClip', max_norm=1.0)

ERRORS = {
    'not a dict': ([], r'If `clip_grad` is not None, it should be a dict.*\[\]'),
    'a number': (35, 'If `clip_grad` is not None, it should be a dict.*35'),
    'a list of rules': ([GOOD], 'If `clip_grad` is not None, it should be a dict'),
    'an empty dict': ({}, 'If `clip_grad` is not None.*empty'),
    'unknown type': (
        dict(type='NormClpi', max_norm=1),
        "unknown type 'NormClpi'. Did you mean 'NormClip'.*Valid types:.*AGC.*norm.*value",
    ),
    'unknown type, far from any': (dict(type='xyz', max_norm=1), "unknown type 'xyz'. Valid"),
    'type of another kind': (dict(type=3, max_norm=1), 'unknown type 3'),
    'misspelt key': (
        dict(type='AGC', clip_facotr=0.1),
        "AGC has no key 'clip_facotr'. Did you mean 'clip_factor'.*Valid keys: clip_factor, eps",
    ),
    'misspelt common key': (
        dict(type='norm', max_norm=1, exclud=['a']),
        "NormClip has no key 'exclud'. Did you mean 'exclude'",
    ),
    'key of another rule': (
        dict(type='AGC', max_norm=1),
        r"AGC has no key 'max_norm'.* a key of .*NormClip, .*\(_delete_=True, type='AGC', ",
    ),
    'stock norm, misspelt': (dict(max_nrom=1), "NormClip has no key 'max_nrom'.*'max_norm'"),
    'missing key': (dict(type='norm'), "NormClip needs the key 'max_norm'"),
    'missing key, other given': (dict(norm_type=2), "needs the key 'max_norm'"),
    'negative threshold': (dict(max_norm=-1), 'max_norm must be .*at least 0, got -1'),
    'NaN threshold': (dict(max_norm=math.nan), 'max_norm must be .*got nan'),
    'threshold as text': (dict(max_norm='35'), "max_norm must be a number, got '35'"),
    'threshold as truth': (dict(max_norm=True), 'max_norm must be a number, got True'),
    'threshold None': (dict(max_norm=None), 'max_norm must be a number, got None'),
    'norm_type zero': (dict(max_norm=1, norm_type=0), 'norm_type must be a number greater than 0'),
    'norm_type NaN': (dict(max_norm=1, norm_type=math.nan), 'norm_type must be'),
    'norm_type text': (dict(max_norm=1, norm_type='2'), "norm_type must be.*or 'inf', got '2'"),
    'min_norm above max_norm': (
        dict(max_norm=1, min_norm=2),
        'min_norm must be .*greater than 0 and at most 1, got 2',
    ),
    'min_norm zero': (dict(max_norm=1, min_norm=0), 'min_norm must be .*greater than 0'),
    'negative clip_value': (dict(clip_value=-0.1), 'clip_value must be .*at least 0'),
    'NaN clip_value': (dict(type='value', clip_value=math.nan), 'clip_value must be'),
    'value without bounds': (dict(type='value'), "needs 'clip_value', or 'min' and/or 'max'"),
    'both forms': (dict(clip_value=1, max=2), "either 'clip_value' or 'min'/'max', not both"),
    'min above max': (dict(min=1, max=0), 'min must be at most max'),
    'infinite min': (dict(type='value', min=-math.inf), 'min must be a finite number'),
    'negative clip_factor': (dict(type='AGC', clip_factor=-1), 'clip_factor must be'),
    'infinite clip_factor': (dict(type='AGC', clip_factor=math.inf), 'clip_factor must be'),
    'eps zero': (dict(type='AGC', eps=0), 'eps must be .*greater than 0, got 0'),
    'unknown policy': (
        dict(max_norm=1, nonfinite='ignore'),
        "nonfinite must be one of 'skip', 'zero', 'raise', 'off', got 'ignore'",
    ),
    'skips zero': (dict(max_norm=1, max_consecutive_skips=0), 'max_consecutive_skips must be'),
    'skips half': (dict(max_norm=1, max_consecutive_skips=2.5), 'must be a whole number'),
    'exclude a number': (dict(max_norm=1, exclude=3), 'exclude must be a list of regular'),
    'exclude a list of numbers': (dict(max_norm=1, exclude=[3]), r'exclude\[0\]: expected a str'),
    'exclude no regex': (
        dict(max_norm=1, exclude=['fine', '(']),
        r"exclude\[1\]: '\(' is not a regular expression",
    ),
    'exclude with a rule': (
        dict(max_norm=1, exclude=[dict(match='a', max_norm=1)]),
        r"exclude\[0\] has no key 'max_norm'. Valid keys: 'match', 'module'",
    ),
    'exclude with both': (
        dict(max_norm=1, exclude=[dict(match='a', module='b')]),
        r"exclude\[0\]: give either 'match' or 'module'",
    ),
    'rules a dict': (
        dict(max_norm=1, rules=dict(match='a', max_norm=2)),
        r'rules must be a list of dict\(match=regex',
    ),
    'rules of strings': (dict(max_norm=1, rules=['backbone']), 'rules must be a list of dict'),
    'rule without condition': (
        dict(max_norm=1, rules=[dict(max_norm=2)]),
        r"rules\[0\]: give either 'match' or 'module'",
    ),
    'rule of unknown type': (
        dict(max_norm=1, rules=[dict(match='a', type='AGCC')]),
        "unknown type 'AGCC'. Did you mean 'AGC'",
    ),
    'rule with a misspelt key': (
        dict(max_norm=1, rules=[dict(match='a', type='AGC', clip_faktor=1)]),
        r"rules\[0\]: AGC has no key 'clip_faktor'. Did you mean 'clip_factor'",
    ),
    'rule with a common key': (
        dict(max_norm=1, rules=[dict(match='a', max_norm=1, nonfinite='skip')]),
        r"rules\[0\]: 'nonfinite' belongs to clip_grad itself",
    ),
    'schedule a number': (dict(max_norm=1, schedule=3), 'schedule must be a dict such as'),
    'schedule without a type': (dict(max_norm=1, schedule=dict(end=3)), 'schedule must be a dict'),
    'schedule of unknown type': (
        dict(max_norm=1, schedule=dict(type='lineer', end=3)),
        "schedule has no type 'lineer'. Did you mean 'linear'",
    ),
    'schedule without an end': (
        dict(max_norm=1, schedule=dict(type='linear')),
        "schedule 'linear' needs the key 'end'",
    ),
    'schedule with a misspelt key': (
        dict(max_norm=1, schedule=dict(type='linear', start_facto=1, end=3)),
        "'linear' has no key 'start_facto'. Did you mean 'start_factor'",
    ),
    'schedule of no threshold': (
        dict(max_norm=1, schedule=dict(type='linear', param_name='max_nom', end=3)),
        "NormClip has no threshold 'max_nom' in use. Did you mean 'max_norm'",
    ),
    'schedule of a bound that is not set': (
        dict(max_norm=1, schedule=dict(type='linear', param_name='min_norm', end=3)),
        "no threshold 'min_norm' in use",
    ),
    'schedule of an infinite bound': (
        dict(max_norm=math.inf, schedule=dict(type='linear', end=3)),
        'no threshold that a schedule can change',
    ),
    'schedule that ends before it begins': (
        dict(max_norm=1, schedule=dict(type='linear', begin=5, end=5)),
        'schedule end must be .*greater than 5',
    ),
    'negative factor': (
        dict(max_norm=1, schedule=dict(type='linear', start_factor=-1, end=5)),
        'schedule start_factor must be .*at least 0',
    ),
    'step_size zero': (
        dict(max_norm=1, schedule=dict(type='step', step_size=0)),
        'schedule step_size must be .*at least 1',
    ),
}


@pytest.mark.parametrize('case', ERRORS)
def test_bad_config_raises_one_line_error_and_changes_nothing(case):
    config, message = ERRORS[case]
    before = copy.deepcopy(config)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(2))], lr=0.1)
    with pytest.raises(ClipConfigError, match=message) as error:
        attach(optimizer, config)
    # Stock MMEngine raises AssertionError for some of these; callers may catch either type.
    assert isinstance(error.value, ValueError) and isinstance(error.value, AssertionError)
    assert '\n' not in str(error.value)
    assert repr(config) == repr(before)
    assert not optimizer._optimizer_step_pre_hooks


@pytest.mark.parametrize('name', [*CLIPPERS, 'norm', 'value', 'agc', 'adaptive'])
def test_unknown_type_error_lists_every_registered_type(name):
    with pytest.raises(ClipConfigError, match=rf'\b{name}\b'):
        parse_clip_grad(dict(type='?'))


STOCK = {
    'max_norm': (dict(max_norm=35, norm_type=2), 'NormClip'),
    'inf': (dict(max_norm=35, norm_type='inf'), 'NormClip'),
    'norm': (dict(type='norm', max_norm=0.1), 'NormClip'),
    'value': (dict(type='value', clip_value=0.1), 'ValueClip'),
    'clip_value': (dict(clip_value=0.1), 'ValueClip'),
    'all keys of clip_grad_norm_': (
        dict(max_norm=35.0, norm_type=2.0, error_if_nonfinite=False, foreach=True),
        'NormClip',
    ),
    'foreach of clip_grad_value_': (dict(type='value', clip_value=1, foreach=None), 'ValueClip'),
    'alias': (dict(type='adaptive'), 'AGC'),
    'class': (dict(type=NormClip, max_norm=1), 'NormClip'),
    'range': (dict(min=-1, max=2), 'ValueClip'),
    'one side': (dict(max=2), 'ValueClip'),
}


@pytest.mark.parametrize('case', STOCK)
def test_valid_config_parses_to_the_expected_rule(case):
    config, rule = STOCK[case]
    parsed = parse_clip_grad(config)
    assert isinstance(parsed, ClipConfig) and type(parsed.outer).__name__ == rule
    assert parsed.nonfinite == 'skip' and parsed.max_consecutive_skips is None


def test_config_dict_is_parsed_to_plain_types_and_not_modified():
    """``ConfigDict`` merges, builds lazily and has attribute access; the result must be plain."""
    mmengine = pytest.importorskip('mmengine')
    cfg = mmengine.Config(
        dict(
            clip_grad=dict(
                type='AGC',
                clip_factor=0.05,
                exclude=['head', dict(module='BatchNorm2d')],
                rules=[dict(match='^backbone', type='norm', max_norm=1.0)],
                schedule=[dict(type='linear', start_factor=0.1, end=10)],
            )
        )
    )
    config = cfg.clip_grad
    assert isinstance(config, mmengine.ConfigDict)
    before = copy.deepcopy(config)
    parsed = parse_clip_grad(config)
    assert config == before and cfg.clip_grad == before
    assert parsed.raw == before.to_dict()

    def types(value):
        yield type(value)
        for item in value.values() if isinstance(value, dict) else value:
            if isinstance(item, dict | list | tuple):
                yield from types(item)

    assert set(types(parsed.raw)) <= {dict, list}


def test_parsing_the_same_config_twice_gives_separate_rules():
    """Stock MMEngine pops ``type`` from the dict that it receives."""
    config = dict(type='norm', max_norm=1.0, exclude=['a'], nonfinite='zero')
    first, second = parse_clip_grad(config), parse_clip_grad(config)
    assert first.raw == second.raw == config
    assert first.outer is not second.outer
