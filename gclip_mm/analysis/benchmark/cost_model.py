"""A model of what clipping costs on 8 to 1024 GPUs, for 1B to 100B parameters.

For each rule it counts the bytes that a GPU reads and writes, the all-reduces and their bytes, the
kernel launches and the state in memory, and turns them into a time with the figures of
:class:`Hardware`, which are assumptions.
"""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import NamedTuple

from ...clipping import CLIPPERS

#: Layers and width of a decoder-only Transformer, by billions of parameters.
MODELS = {
    1: (16, 2304),
    7: (32, 4096),
    13: (40, 5120),
    30: (60, 6656),
    70: (80, 8192),
    100: (96, 9216),
}
VOCABULARY = 32_000
#: Bytes of a number in a message or in the state of a rule: float64.
WIDE = 8
#: torch's multi-tensor kernels: most tensors, and most chunks of 65536 elements, in one launch.
TENSORS_A_LAUNCH, CHUNKS_A_LAUNCH, CHUNK = 110, 320, 65536


class Model(NamedTuple):
    """The parameters of a model.

    Attributes:
        weights: how many in all.
        matrices: tensors with rows, each of them a unit of AGC.
        vectors: tensors of one dimension, a unit each.
    """

    weights: int
    matrices: int
    vectors: int

    @property
    def tensors(self) -> int:
        """Number of tensors."""
        return self.matrices + self.vectors


class Cost(NamedTuple):
    """What one step of a rule costs one process.

    Attributes:
        read: bytes read from memory; every element is clipped (the worst case).
        written: bytes written.
        messages: bytes of each all-reduce, for each sharded mesh dimension.
        passes: how often the multi-tensor kernels traverse the gradients.
        state: bytes that the rule keeps between steps.
    """

    read: float
    written: float
    messages: tuple[int, ...]
    passes: int
    state: float


class Hardware(NamedTuple):
    """Figures of the machine, all of them assumptions.

    Attributes:
        hbm: bytes a second of a GPU's memory, as reached by a streaming kernel.
        nvlink: bytes a second of a GPU to the others of its node.
        network: bytes a second of a GPU to other nodes.
        node: GPUs in a node.
        launch: seconds from one kernel of a stream to the next.
        hop: seconds that a message takes between two GPUs of a node.
        far_hop: seconds that it takes between two nodes.
        flops: operations a second that training reaches (peak times utilisation).
        tokens: tokens of a step on each GPU.
        memory: bytes of a GPU's memory.
    """

    hbm: float = 2.8e12
    nvlink: float = 4.5e11
    network: float = 5e10
    node: int = 8
    launch: float = 4e-6
    hop: float = 3e-6
    far_hop: float = 1e-5
    flops: float = 4e14
    tokens: int = 8192
    memory: float = 8e10


def transformer(billions: int) -> Model:
    """A decoder-only Transformer: seven matrices and two norms a layer, and both embeddings."""
    layers, width = MODELS[billions]
    weights = 12 * layers * width**2 + 2 * layers * width + (2 * VOCABULARY + 1) * width
    return Model(weights, 7 * layers + 2, 2 * layers + 1)


def cost(rule: str, model: Model, shards: int, bytes_each: int = 4, folds: bool = False) -> Cost:
    """What a step of a rule costs a process.

    Args:
        rule: a registered rule, as its example sets it.
        model: the parameters.
        shards: processes that each parameter is spread over by its rows, as ``fully_shard`` does.
        bytes_each: of a gradient's element.
        folds: a fused optimizer applies a global coefficient in its own kernel (not with DTensors).
    """
    own = model.weights / shards
    grads, each = own * bytes_each, model.tensors * WIDE
    # A maximum is sent as float32.
    tops = model.tensors * 4
    walk = Cost(grads, 0, (each,), 1, 0)
    scaled = Cost(2 * grads, grads, (each,), 2, 0)
    table = {
        'NormClip': walk if folds else scaled,
        'AutoClip': (walk if folds else scaled)._replace(state=1000 * WIDE),
        'ZClip': (walk if folds else scaled)._replace(state=3 * WIDE),
        'ParamNormClip': scaled,
        'BlockRMSClip': scaled,
        'AdaGC': scaled._replace(state=2 * model.tensors * WIDE),
        'GradientStabilizer': scaled._replace(state=3 * model.tensors * WIDE),
        # Gradient and weight are read once; totals of matrices, vectors with their units.
        'AGC': Cost(
            3 * grads,
            grads,
            (WIDE * (model.tensors + 2 * model.vectors), 3 * WIDE * model.matrices),
            3,
            0,
        ),
        # As AGC, and the sums over each matrix of steps and sizes, before anything is scaled.
        'Auto': Cost(
            3 * grads,
            grads,
            (
                WIDE * (model.tensors + 2 * model.vectors),
                2 * WIDE * model.matrices,
                3 * WIDE * model.matrices,
            ),
            3,
            0,
        ),
        # Norm before; clamp; norm after; how many were cut.
        'ValueClip': Cost(3 * grads, grads, (each, each, each), 3, 0),
        'AdaClip': Cost(4 * grads, grads, (each, tops, each, each), 4, 2 * model.tensors * WIDE),
        'SpikeClip': Cost(
            3 * grads + own * 4,
            grads + own * 4,
            (each, each, each),
            4,
            own * 4 + 2 * model.tensors * WIDE,
        ),
        # The example: values, then the norm of what they have left.
        'ChainClip': Cost(4 * grads, 2 * grads, (each, each, each), 4, 0),
    }
    if rule not in table:
        raise KeyError(f'no cost is known for the rule {rule!r}; known: {", ".join(table)}')
    return table[rule]


def launches(model: Model, shards: int, passes: int) -> int:
    """Multi-tensor kernels of a step on a GPU, without the small ones for the coefficients."""
    by_size = math.ceil(model.weights / shards / (CHUNK * CHUNKS_A_LAUNCH))
    by_number = math.ceil(model.tensors / TENSORS_A_LAUNCH)
    return passes * max(by_size, by_number)


def exchange_seconds(message: int, gpus: int, hardware: Hardware) -> float:
    """Seconds of an all-reduce of a small message: a tree up and down, and its bytes twice."""
    nodes = math.ceil(gpus / hardware.node)
    near = 2 * math.ceil(math.log2(min(gpus, hardware.node))) * hardware.hop
    far = 2 * math.ceil(math.log2(nodes)) * hardware.far_hop
    speed = hardware.nvlink if nodes == 1 else hardware.network
    return near + far + 2 * message / speed


def seconds(rule: str, model: Model, gpus: int, hardware: Hardware, shard: bool = True) -> float:
    """Estimated time of clipping in one step on each of ``gpus``."""
    shards = gpus if shard else 1
    one = cost(rule, model, shards, folds=not shard)
    memory = (one.read + one.written) / hardware.hbm
    starts = launches(model, shards, one.passes) * hardware.launch
    crossing = sum(exchange_seconds(m, gpus, hardware) for m in one.messages) if shard else 0.0
    # The host launches kernels while earlier ones run.
    return max(memory, starts) + crossing


def training_seconds(model: Model, hardware: Hardware) -> float:
    """Time of the whole training step: six operations per parameter and token."""
    return 6 * model.weights * hardware.tokens / hardware.flops


def human(size: float) -> str:
    """``1.5 MB``; powers of ten."""
    for unit in ('B', 'kB', 'MB', 'GB'):
        if size < 1000 or unit == 'GB':
            return f'{size:.3g} {unit}' if size < 100 else f'{size:.0f} {unit}'
        size /= 1000
    raise AssertionError


def row(rule: str, billions: int, gpus: int, hardware: Hardware) -> str:
    """A line of the table."""
    model = transformer(billions)
    one = cost(rule, model, gpus)
    # Weights, gradients and two moments, in float32.
    fits = 16 * model.weights / gpus + one.state <= 0.8 * hardware.memory
    clip, step = seconds(rule, model, gpus, hardware), training_seconds(model, hardware)
    cells = [
        f'{billions}B',
        f'{gpus}' if fits else f'{gpus} (too few)',
        rule,
        human(one.read),
        human(one.written),
        ' + '.join(human(message) for message in one.messages),
        f'{launches(model, gpus, one.passes)}',
        human(one.state),
        f'{1e3 * clip:.2f} ms',
        f'{100 * clip / step:.2f} %',
    ]
    return '| ' + ' | '.join(cells) + ' |'


HEAD = (
    '| weights | GPUs | rule | read | written | all-reduces | launches | state | time | of a step |'
)


def table(
    sizes: list[int], gpus: list[int], rules: list[str], hardware: Hardware | None = None
) -> list[str]:
    """The lines of a Markdown table, for parameters sharded over all GPUs (``fully_shard``)."""
    hardware = hardware or Hardware()
    lines = [HEAD, '|---' * HEAD.count(' | ') + '|---|']
    return lines + [row(r, size, g, hardware) for size in sizes for g in gpus for r in rules]


def check_table(file: Path) -> list[str]:
    """The bytes that each rule moves, relative to the gradients, beside measured times of a CPU.

    Args:
        file: a CSV of ``gclip benchmark``, whose times are relative to one reading of the memory.
    """
    model = Model(1 << 20, 1, 0)
    lines = [
        '| rule | bytes, over one reading | time measured, over one reading |',
        '|---|---|---|',
    ]
    with file.open() as opened:
        for entry in csv.DictReader(opened):
            if entry['name'] in CLIPPERS:
                one = cost(entry['name'], model, 1, folds=True)
                moved = (one.read + one.written) / (4 * model.weights)
                measured = float(entry['clip_alone_over_read_once'])
                lines.append(f'| {entry["name"]} | {moved:.1f} | {measured:.1f} |')
    return lines
