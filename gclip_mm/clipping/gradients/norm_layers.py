"""Which weights are followed by a normalisation layer that is at work.

The output of such a layer does not depend on the size of the weights before it, so that a large
step changes the function less. A batch norm in evaluation mode (``norm_eval=True``, frozen stages)
scales by fixed numbers and gives no such protection.
"""

from __future__ import annotations

from torch import nn

_BATCH_NORMS = (nn.modules.batchnorm._BatchNorm,)
#: Those that normalise what a convolution or a linear layer before them puts out, per channel.
_CHANNEL_NORMS = (*_BATCH_NORMS, nn.modules.instancenorm._InstanceNorm, nn.GroupNorm)


def followers(model: nn.Module | None) -> dict[int, nn.Module]:
    """The normalisation layer behind each layer, by the ``id`` of the layer.

    Layers are taken in the order in which the model registers them, which is the order of the
    forward pass within a block in mmcv, timm and torchvision. Layers without parameters, such as
    activations, are passed over.

    Returns:
        dict: only layers whose output channels are what the next layer normalises.
    """
    if model is None:
        return {}
    found: dict[int, nn.Module] = {}
    before: nn.Module | None = None
    for module in model.modules():
        is_norm = isinstance(module, _CHANNEL_NORMS)
        if not is_norm and next(module.parameters(recurse=False), None) is None:
            continue
        if is_norm and before is not None and _channels(before) == _width(module):
            found[id(before)] = module
        before = None if is_norm else module
    return found


def is_norm_layer(module: nn.Module | None) -> bool:
    """Whether the module is a normalisation layer, of whatever kind."""
    return isinstance(module, (*_CHANNEL_NORMS, nn.LayerNorm))


def is_live(norm: nn.Module | None) -> bool:
    """Whether the layer normalises by what it sees, and not by fixed numbers."""
    if norm is None:
        return False
    return norm.training or not isinstance(norm, _BATCH_NORMS)


def _channels(module: nn.Module) -> object:
    return getattr(module, 'out_channels', getattr(module, 'out_features', None))


def _width(norm: nn.Module) -> object:
    return getattr(norm, 'num_features', getattr(norm, 'num_channels', None))
