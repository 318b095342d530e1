"""What differs between releases of the packages below us; no other module asks for a version."""

from __future__ import annotations

from typing import Any

import torch

# What MMEngine and MMDetection leave in a checkpoint beside tensors: losses, counts, scores,
# palettes and class names.
_NUMPY_DTYPES = ('?', 'b', 'B', 'h', 'H', 'i', 'I', 'l', 'L', 'q', 'Q', 'e', 'f', 'd', 'U', 'S')


# Classes within classes that a checkpoint may look up.
_NESTED: dict[tuple[type, str], type] = {}


def _unpickle_statistics_method(owner: Any, name: str) -> Any:
    """Stand-in for ``getattr`` while a checkpoint is read.

    A ``HistoryBuffer`` pickles its statistics as ``getattr(HistoryBuffer, 'mean')``. The real
    ``getattr`` would let a crafted file walk to any object of the process.
    """
    from mmengine.logging import HistoryBuffer

    if isinstance(owner, type) and (owner, name) in _NESTED:
        return _NESTED[owner, name]

    if owner is HistoryBuffer and not name.startswith('_'):
        return getattr(HistoryBuffer, name)
    raise ValueError(
        f'the checkpoint asks for attribute {name!r} of {owner!r}; '
        'only the statistics methods of a HistoryBuffer may be looked up'
    )


def allow_mmengine_checkpoints() -> None:
    """Let ``torch.load`` read the checkpoints that MMEngine writes, without unpickling at large.

    Since PyTorch 2.6 ``torch.load`` accepts only classes it has been told of, and MMEngine 0.10.7
    neither tells it of any nor asks for the old behaviour, so that resuming fails on the loss
    history. This names exactly the classes that such a checkpoint holds: the loss history,
    plain NumPy arrays and scalars, and config dicts. Files written under NumPy 1 and under NumPy 2
    are read by either. Calling it twice changes nothing; on older PyTorch it does nothing.
    """
    if torch.__version__ < (2, 6):
        return
    import numpy as np
    from mmengine.config import ConfigDict
    from mmengine.logging import HistoryBuffer

    multiarray = np._core.multiarray if hasattr(np, '_core') else np.core.multiarray
    allowed: list[Any] = [
        HistoryBuffer,
        ConfigDict,
        np.ndarray,
        np.dtype,
        (_unpickle_statistics_method, 'builtins.getattr'),
    ]
    allowed += [type(np.dtype(kind)) for kind in _NUMPY_DTYPES]
    for module in ('numpy.core.multiarray', 'numpy._core.multiarray'):
        for function in (multiarray._reconstruct, multiarray.scalar):
            allowed.append((function, f'{module}.{function.__name__}'))
    torch.serialization.add_safe_globals(allowed)


def allow_sharded_checkpoints() -> None:
    """Let ``torch.load`` read what MMEngine's ``FSDPStrategy`` writes by default, shards of a rank.

    See :func:`allow_mmengine_checkpoints`. The classes hold tensors, shapes and ranks.
    """
    if torch.__version__ < (2, 6):
        return
    from torch.distributed._shard.metadata import ShardMetadata
    from torch.distributed._shard.sharded_tensor import Shard, ShardedTensor, ShardedTensorMetadata
    from torch.distributed._shard.sharded_tensor.metadata import (
        MEM_FORMAT_ENCODING,
        TensorProperties,
    )
    from torch.distributed._shard.sharding_spec import ChunkShardingSpec, EnumerableShardingSpec
    from torch.distributed.remote_device import _remote_device

    group = ShardedTensor.ProcessGroupState
    _NESTED[ShardedTensor, group.__name__] = group
    torch.serialization.add_safe_globals(
        [
            ShardedTensor,
            group,
            ShardedTensorMetadata,
            ShardMetadata,
            Shard,
            TensorProperties,
            MEM_FORMAT_ENCODING,
            ChunkShardingSpec,
            EnumerableShardingSpec,
            _remote_device,
        ]
    )


def let_ssd_predict() -> None:
    """Give mmdet's ``SSDHead`` the attribute that its prediction asks for.

    Since mmdet 3.2 the prediction of every dense head looks at ``self.loss_cls``, which ``SSDHead``
    never sets, so that stock SSD trains but raises ``AttributeError`` at its first validation
    (open-mmlab/mmdetection issues 11063 and 11780). ``None`` makes it take the softmax, as it did
    before. Where ``SSDHead`` has it by itself, its own comes first.
    """
    from mmdet.models.dense_heads import SSDHead

    if not hasattr(SSDHead, 'loss_cls'):
        SSDHead.loss_cls = None
