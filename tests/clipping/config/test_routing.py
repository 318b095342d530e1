"""Routing: which rule clips which parameter."""

import functools
import math

import pytest
import torch
from torch import nn

from gclip_mm import ClipConfigError, attach
from gclip_mm.clipping import GradClipEngine
from gclip_mm.clipping.gradients.names import describe_params


class Detector(nn.Module):
    """Model with the parameter names of a detector: backbone, neck, head."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3))
        self.neck = nn.ModuleDict(dict(lateral=nn.Conv2d(3, 4, 1), up=nn.ConvTranspose2d(4, 4, 2)))
        self.bbox_head = nn.ModuleDict(dict(fc_cls=nn.Linear(4, 5), fc_reg=nn.Linear(4, 4)))


NAMES = [
    'backbone.0.weight',
    'backbone.0.bias',
    'backbone.1.weight',
    'backbone.1.bias',
    'neck.lateral.weight',
    'neck.lateral.bias',
    'neck.up.weight',
    'neck.up.bias',
    'bbox_head.fc_cls.weight',
    'bbox_head.fc_cls.bias',
    'bbox_head.fc_reg.weight',
    'bbox_head.fc_reg.bias',
]


def fill(model, value=1.0):
    for p in model.parameters():
        p.grad = torch.full_like(p, value)


def norm_of(model, names):
    params = dict(model.named_parameters())
    return math.sqrt(sum(float((params[name].grad.double() ** 2).sum()) for name in names))


def step(config, model=None, wrap=lambda model: model):
    """Take one step with learning rate 0; return the model and the stats of the step."""
    model = Detector() if model is None else model
    fill(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    handle = attach(optimizer, config, model=wrap(model))
    optimizer.step()
    return model, handle.stats()


def test_parameter_names_and_modules_are_those_of_the_model():
    model = Detector()
    infos = describe_params(model.parameters(), model)
    assert [info.name for info in infos] == NAMES
    assert all(getattr(info.module, info.attribute) is info.param for info in infos)


@pytest.mark.parametrize(
    'wrap',
    [
        nn.DataParallel,
        functools.partial(torch.compile, backend='eager'),
        lambda model: nn.DataParallel(torch.compile(model, backend='eager')),
    ],
    ids=['DataParallel', 'compile', 'both'],
)
def test_wrappers_do_not_change_names(wrap):
    model = Detector()
    assert [info.name for info in describe_params(model.parameters(), wrap(model))] == NAMES


def test_activation_checkpointing_does_not_change_names():
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    model = Detector()
    params = list(model.parameters())
    model.backbone[0] = checkpoint_wrapper(model.backbone[0])
    infos = describe_params(params, model)
    assert [info.name for info in infos] == NAMES
    assert type(infos[0].module) is nn.Conv2d


def test_excluded_parameters_keep_their_gradient():
    model, stats = step(dict(max_norm=0.1, exclude=['fc_cls', r'^backbone\.1']))
    params = dict(model.named_parameters())
    free = [name for name in NAMES if 'fc_cls' in name or name.startswith('backbone.1')]
    for name in free:
        assert (params[name].grad == 1).all()
    rest = [name for name in NAMES if name not in free]
    assert norm_of(model, rest) == pytest.approx(0.1, rel=1e-5)
    # The logged norms, before and after clipping, cover all gradients, excluded ones too.
    assert stats['grad_norm'] == pytest.approx(math.sqrt(sum(p.numel() for p in params.values())))
    assert stats['grad_norm_post'] == pytest.approx(norm_of(model, NAMES))
    assert stats['clip_coef'] == pytest.approx(stats['grad_norm_post'] / stats['grad_norm'])
    assert stats['clip_threshold'] == pytest.approx(0.1) and stats['clip_fraction'] == 1


def test_exclude_by_module_class_takes_subclasses_too():
    model, _ = step(dict(max_norm=0.1, exclude=[dict(module='_BatchNorm'), dict(module='Linear')]))
    params = dict(model.named_parameters())
    for name in NAMES:
        free = name.startswith(('backbone.1', 'bbox_head'))
        assert (params[name].grad == 1).all() == free


@pytest.mark.parametrize('exclude', ['fc_cls', ['fc_cls'], ('fc_cls',)])
def test_exclude_accepts_a_string_list_or_tuple(exclude):
    model, _ = step(dict(max_norm=0.1, exclude=exclude))
    assert (model.bbox_head.fc_cls.weight.grad == 1).all()


def test_each_route_clips_only_its_own_parameters():
    model, stats = step(
        dict(
            type='norm',
            max_norm=0.1,
            rules=[
                dict(match='^backbone', type='ValueClip', clip_value=0.25),
                dict(match='^neck', max_norm=0.02),
                dict(module='Linear', type='AGC', clip_factor=0.5),
            ],
            exclude=['fc_reg.bias'],
        )
    )
    params = dict(model.named_parameters())
    for name in NAMES[:4]:
        assert (params[name].grad == 0.25).all()
    assert norm_of(model, NAMES[4:8]) == pytest.approx(0.02, rel=1e-4)
    # AGC clips each row of a weight, and a bias as one unit.
    for name in ('bbox_head.fc_cls.weight', 'bbox_head.fc_reg.weight'):
        w = params[name].detach().double()
        torch.testing.assert_close(params[name].grad.double().norm(dim=1), 0.5 * w.norm(dim=1))
    bias = params['bbox_head.fc_cls.bias']
    assert float(bias.grad.norm()) == pytest.approx(0.5 * float(bias.detach().norm()), rel=1e-5)
    assert (params['bbox_head.fc_reg.bias'].grad == 1).all()
    # The outer rule has no parameters left, so it has no threshold to log.
    assert math.isnan(stats['clip_threshold'])
    assert stats['grad_norm_post'] == pytest.approx(norm_of(model, NAMES), rel=1e-5)


def test_first_matching_rule_wins_and_exclude_precedes_rules():
    model, _ = step(
        dict(
            max_norm=0.1,
            rules=[
                dict(match='backbone.0', type='value', clip_value=0.5),
                dict(match='backbone', type='value', clip_value=0.25),
            ],
            exclude=['backbone.0.bias'],
        )
    )
    grads = [p.grad.max().item() for p in model.backbone.parameters()]
    assert grads == [0.5, 1.0, 0.25, 0.25]


def test_logged_norm_has_the_order_of_the_outer_rule():
    """Each route measures with its own order; the log uses that of the outer rule."""
    model, stats = step(
        dict(max_norm=0.1, norm_type=1, rules=[dict(match='backbone', max_norm=0.2, norm_type=2)])
    )
    params = dict(model.named_parameters())
    assert norm_of(model, NAMES[:4]) == pytest.approx(0.2, rel=1e-5)
    rest = sum(float(params[name].grad.sum()) for name in NAMES[4:])
    assert rest == pytest.approx(0.1, rel=1e-5)
    assert stats['grad_norm'] == sum(p.numel() for p in params.values())
    after = sum(float(p.grad.sum()) for p in params.values())
    assert stats['grad_norm_post'] == pytest.approx(after, rel=1e-5)


def test_excluding_every_parameter_clips_nothing():
    model, stats = step(dict(max_norm=0.1, exclude=['']))
    assert all((p.grad == 1).all() for p in model.parameters())
    assert stats['clip_coef'] == 1 and stats['clip_fraction'] == 0
    assert stats['grad_norm'] == stats['grad_norm_post']


@pytest.mark.parametrize('name', ['SGD', 'AdamW'])
def test_routes_give_the_same_weights_with_a_fused_optimizer(name):
    config = dict(
        max_norm=0.1,
        exclude=['fc_cls'],
        rules=[dict(match='^backbone', type='AGC'), dict(module='ConvTranspose2d', max_norm=0.05)],
    )
    trained = []
    for fused in (True, False):
        torch.manual_seed(0)
        model = Detector()
        optimizer = getattr(torch.optim, name)(model.parameters(), lr=0.1, fused=fused)
        attach(optimizer, config, model=model)
        for value in (1.0, math.nan, -3.0, 1e-5):
            fill(model, value)
            optimizer.step()
        trained.append([p.detach() for p in model.parameters()])
    for a, b in zip(*trained, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


def test_clip_fraction_of_several_rules_is_weighted_by_elements():
    """ValueClip counts elements, NormClip counts all of its gradients at once."""
    model = nn.ModuleDict(dict(a=nn.Linear(30, 2, bias=False), b=nn.Linear(20, 2, bias=False)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    values = dict(match='^a', type='ValueClip', clip_value=1.0)
    handle = attach(optimizer, dict(max_norm=1e-3, rules=[values]), model=model)
    for outside, expected in ((0, 40 / 100), (15, 55 / 100)):
        model['a'].weight.grad = torch.full((2, 30), 0.5)
        model['a'].weight.grad[0, :outside] = 2.0
        model['b'].weight.grad = torch.ones(2, 20)
        optimizer.step()
        assert handle.stats()['clip_fraction'] == pytest.approx(expected)


def test_route_without_elements_does_not_count_in_clip_fraction():
    model = nn.ParameterDict(dict(a=torch.ones(3), z=torch.zeros(0, 3)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    rules = [dict(match='^z', type='AGC')]
    handle = attach(optimizer, dict(max_norm=1e-3, rules=rules), model=model)
    for p in model.values():
        p.grad = torch.ones_like(p)
    optimizer.step()
    assert handle.stats()['clip_fraction'] == 1


def test_route_without_gradients_leaves_the_step_to_the_other_route():
    model = Detector()
    fill(model)
    for p in model.backbone.parameters():
        p.grad = None
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    handle = attach(
        optimizer, dict(max_norm=0.1, rules=[dict(match='^backbone', type='AGC')]), model=model
    )
    optimizer.step()
    assert handle.stats()['grad_norm_post'] == pytest.approx(0.1, rel=1e-5)
    # The reverse: the outer rule has no gradients, so the threshold is that of the AGC route.
    optimizer.zero_grad()
    for p in model.backbone.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    stats = handle.stats()
    assert stats['clip_threshold'] != 0.1 and stats['clip_fraction'] == 1
    # Every unit was clipped to its bound; the threshold is their joint norm.
    assert stats['grad_norm_post'] == pytest.approx(stats['clip_threshold'], rel=1e-5)


def test_engine_with_patterns_steps_only_after_bind():
    model = Detector()
    fill(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    engine = GradClipEngine(optimizer, dict(max_norm=0.1, exclude=['backbone']))
    with pytest.raises(ClipConfigError, match='pass the model'):
        optimizer.step()
    assert not engine.is_bound
    engine.bind(model)
    optimizer.step()
    assert (model.backbone[0].weight.grad == 1).all()
    assert norm_of(model, NAMES[4:]) == pytest.approx(0.1, rel=1e-5)


@pytest.mark.parametrize(
    ('config', 'message'),
    [
        (dict(exclude=['fc_clz']), r"exclude\[0\].*'fc_clz' matches no parameter by name.*fc_cls"),
        (
            dict(exclude=['fc_cls', '^backbnoe']),
            r"exclude\[1\].*'\^backbnoe' matches no parameter.*'backbone",
        ),
        (
            dict(rules=[dict(match='bbox_haed', max_norm=1)]),
            r"rules\[0\].*'bbox_haed' matches no parameter.*'bbox_head",
        ),
        (
            dict(exclude=[dict(module='BatchNorm')]),
            r"'BatchNorm' matches no parameter by module class.*'BatchNorm2d'",
        ),
        (dict(rules=[dict(module='Conv3d', max_norm=1)]), r"'Conv3d'.*'Conv2d'"),
    ],
)
def test_pattern_without_match_raises_and_suggests_the_nearest_name(config, message):
    with pytest.raises(ClipConfigError, match=message):
        step(dict(max_norm=0.1, **config))


def test_pattern_shadowed_by_an_earlier_one_is_accepted():
    """The pattern matches but gets no parameter; inherited configs often contain such patterns."""
    step(dict(max_norm=0.1, exclude=['backbone', r'backbone\.0']))
