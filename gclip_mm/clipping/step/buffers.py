"""The buffers of the model: running statistics of batch norm, counters, queues.

The forward pass updates them before anyone knows whether the step is finite, and one infinite pixel
turns running statistics into NaN for good. A step that is left out puts back the buffers of the
last step that was taken: after the backward pass, because autograd saves some of them.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor, nn

from ...compat import foreach_copy_
from ..gradients.sharding import to_local


class BufferKeeper:
    """Keeps a copy of the buffers of a model as they were after the last step that was taken.

    Nothing waits for the device. The copy takes the memory of the buffers once more.
    """

    def __init__(self) -> None:
        self._model: nn.Module | None = None
        self._places: list[tuple[dict[str, Tensor | None], str]] = []
        self._tensors: list[Tensor | None] = []
        self._groups: list[_Group] = []
        # The group of each buffer, and its place there.
        self._where: dict[int, tuple[_Group, int]] = {}
        self._hook: Any = None

    def watch(self, model: nn.Module) -> None:
        """Keep the buffers of a model from now on, starting from what they are."""
        if model is self._model:
            return
        self.forget()
        self._model = model
        self._places = [
            (module._buffers, name) for module in model.modules() for name in module._buffers
        ]
        self._rebuild()
        # What is loaded into the model is where the next step starts from.
        hook = _Refresh(self)
        self._hook = model.register_load_state_dict_post_hook(hook)  # type: ignore[no-untyped-call]

    def forget(self) -> None:
        """Stop keeping."""
        if self._hook is not None:
            self._hook.remove()
        self.__init__()  # type: ignore[misc]

    def __getstate__(self) -> dict[str, Any]:
        # Hooks stay with the model that they were registered on.
        return {**vars(self), '_hook': None}

    def keep(self) -> None:
        """The step is taken: what the buffers are is what to go back to."""
        if self._find():
            for group in self._groups:
                foreach_copy_(group.saved, group.buffers)
        else:
            self._rebuild()

    def put_back(self) -> None:
        """The step is left out."""
        if self._find():
            for group in self._groups:
                foreach_copy_(group.buffers, group.saved)
            return
        # The model was moved or rebuilt since the last step.
        former = {
            place: value
            for group in self._groups
            for place, value in zip(group.places, group.saved, strict=True)
        }
        for place, tensor in enumerate(self._current()):
            value = former.get(place)
            if tensor is not None and value is not None and tensor.shape == value.shape:
                tensor.copy_(value)
        self._rebuild()

    def settle(self, skipped: bool | Tensor) -> None:
        """A step is over.

        Args:
            skipped: whether it is left out; a 0-d tensor, True or not 0 if so, where only the
                device knows.
        """
        if not isinstance(skipped, Tensor):
            (self.put_back if skipped else self.keep)()
        elif not self._find():
            self._rebuild()
        else:
            for group in self._groups:
                now = torch.cat([buffer.reshape(-1) for buffer in group.buffers])
                torch.where((skipped == 0).to(now.device), now, group.flat, out=group.flat)
                foreach_copy_(group.buffers, group.saved)

    def _current(self) -> list[Tensor | None]:
        return [owner.get(name) for owner, name in self._places]

    def _find(self) -> bool:
        """Find the buffers of now; False where their shapes, dtypes or devices have changed."""
        tensors = self._current()
        for place, (now, before) in enumerate(zip(tensors, self._tensors, strict=True)):
            if now is before:
                continue
            # A module may assign a new tensor in each forward pass.
            if now is None or before is None or _kind(now) != _kind(before):
                return False
            group, i = self._where.get(place, (None, 0))
            if group is not None:
                group.buffers[i] = to_local(now).detach()
        self._tensors = tensors
        return True

    def _rebuild(self) -> None:
        self._tensors = self._current()
        kinds: dict[Any, list[int]] = {}
        seen: set[int] = set()
        for place, tensor in enumerate(self._tensors):
            if tensor is None or id(tensor) in seen or tensor.layout != torch.strided:
                continue
            seen.add(id(tensor))
            if to_local(tensor).numel():
                kinds.setdefault((tensor.dtype, tensor.device), []).append(place)
        self._groups = [_Group(places, self._tensors) for places in kinds.values()]
        self._where = {
            place: (group, i) for group in self._groups for i, place in enumerate(group.places)
        }


def _kind(tensor: Tensor) -> tuple[torch.Size, torch.dtype, torch.device]:
    return tensor.shape, tensor.dtype, tensor.device


class _Group:
    """Buffers of one dtype on one device, and a copy of them in one flat tensor.

    Args:
        places: which of the tensors.
        tensors: the buffers of the model.
    """

    def __init__(self, places: list[int], tensors: list[Tensor | None]) -> None:
        self.places = places
        found = [tensors[place] for place in places]
        self.buffers = [to_local(tensor).detach() for tensor in found if tensor is not None]
        self.flat = torch.cat([buffer.reshape(-1) for buffer in self.buffers])
        parts = self.flat.split([b.numel() for b in self.buffers])  # type: ignore[no-untyped-call]
        self.saved = [part.view(b.shape) for part, b in zip(parts, self.buffers, strict=True)]


class _Refresh:
    """Copies the buffers again after ``load_state_dict``. A copied or pickled model forgets it."""

    def __init__(self, keeper: BufferKeeper | None = None) -> None:
        self._keeper = None if keeper is None else weakref.ref(keeper)

    def __call__(self, module: nn.Module, incompatible_keys: Any) -> None:
        keeper = None if self._keeper is None else self._keeper()
        if keeper is not None:
            keeper.keep()

    def __reduce__(self) -> tuple[Any, ...]:
        return _Refresh, ()

    def __deepcopy__(self, memo: dict[int, Any]) -> _Refresh:
        return _Refresh()
