"""Cases for the worker: rules, ways to distribute the model, and optimizers."""

from __future__ import annotations

from pathlib import Path

from gclip_mm import CLIPPERS

WORKER = Path(__file__).with_name('worker.py')

RULES = {name: {'type': name, **CLIPPERS.get(name).example} for name in CLIPPERS}
RULES |= {
    'inf norm': dict(type='NormClip', max_norm=0.05, norm_type='inf'),
    '3-norm': dict(type='NormClip', max_norm=0.1, norm_type=3),
    'AGC everywhere': dict(type='AGC', clip_factor=1e-3),
    'Auto update': dict(type='Auto', side='update'),
    'carry': dict(type='NormClip', max_norm=0.3, carry=True),
    'carry in a chain': dict(
        type='ChainClip',
        clips=[
            dict(type='ValueClip', clip_value=0.05, carry=True),
            dict(type='NormClip', max_norm=0.3),
        ],
    ),
    'routes': dict(
        type='AGC',
        rules=[dict(match='^stem', type='NormClip', max_norm=0.1)],
        exclude=['head'],
    ),
}


def optimizers(how: str, rule: dict) -> list[str]:
    if rule['type'] == 'GradientStabilizer':
        return ['adamw']
    if rule['type'] == 'Auto':
        # Bounds the gradient; the update, from the state; the update, from a copy.
        return ['sgd', 'adamw'] if rule.get('side') is None else ['sgd']
    # torch itself refuses to fuse a step over DTensors and plain tensors.
    fuses = how not in ('zero', 'mixed') and rule['type'] in ('NormClip', 'AGC', 'ValueClip')
    return ['sgd', 'adamw_fused'] if fuses else ['sgd']


#: Fewer rules suffice where every rank has whole gradients (ddp, zero), and where plain parameters
#: are mixed with sharded ones.
FEWER = {
    'ddp': {*CLIPPERS, 'Auto update', 'routes', 'carry'},
    'zero': {*CLIPPERS, 'Auto update'},
}
FEWER['mixed'] = {
    'NormClip',
    'inf norm',
    'AGC',
    'Auto',
    'Auto update',
    'ValueClip',
    'AdaGC',
    'carry',
    'routes',
}

CASES = {
    f'{how} {name} {optimizer}': dict(
        how=how, clip_grad=rule, optimizer=optimizer, nan_step=3, count=how == 'fsdp2'
    )
    for how in ('ddp', 'zero', 'fsdp1', 'fsdp2', 'mixed')
    for name, rule in RULES.items()
    if name in FEWER.get(how, RULES)
    for optimizer in optimizers(how, rule)
}
#: Cases for four processes, on two-dimensional meshes: replicated shards (hsdp) and sharded
#: tensor-parallel layers (tp), and plain fsdp2.
FOUR = {
    f'{how} {name} sgd': dict(
        how=how, clip_grad=RULES[name], optimizer='sgd', nan_step=3, count=True
    )
    for how in ('hsdp', 'tp', 'fsdp2')
    for name in ('NormClip', 'AGC', 'ValueClip', 'AdaGC', 'carry', 'routes')
}
#: Rules that raise under FSDP1, whose flat parameters have no units.
NEEDS_UNITS = {name for name, rule in RULES.items() if rule['type'] == 'AGC'}

#: Rules with a state; their warm-up ends before the run is interrupted halfway.
STATEFUL = {
    'AutoClip': dict(type='AutoClip', percentile=40, window=4),
    'ZClip': dict(type='ZClip', warmup_steps=2, z_threshold=0.5, max_norm=None),
    'AdaGC': dict(type='AdaGC', warmup_steps=1, rel=1.01, beta=0.9),
    'AdaClip': dict(type='AdaClip', beta=0.9),
    'SpikeClip': dict(type='SpikeClip', theta=1.5, beta=0.9, grace_steps=1),
    'carry': dict(type='NormClip', max_norm=0.3, carry=True),
    'carry in a chain': RULES['carry in a chain'],
}
HALVES = {
    f'half {how} {name}': dict(how=how, clip_grad=rule, optimizer='sgd_plain', half=True)
    for how in ('fsdp1', 'fsdp2')
    for name, rule in STATEFUL.items()
    if how == 'fsdp2' or name in ('AutoClip', 'ZClip', 'AdaGC', 'AdaClip')
}


def second_halves(file: Path) -> dict[str, dict]:
    """Cases that continue from the states that two processes saved in ``file``."""
    return {key: {**case, 'half': False, 'from': [str(file), key]} for key, case in HALVES.items()}
