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
        self.keep()
        # What is loaded into the model is where the next step starts from.
        self._hook = model.register_load_state_dict_post_hook(_Refresh(self))

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
        if self._refresh():
            return
        for group in self._groups:
            torch._foreach_copy_(group.saved, group.buffers)

    def put_back(self) -> None:
        """The step is left out."""
        if self._refresh():
            # The model was moved or rebuilt since the last step: there is nothing to go back to.
            return
        for group in self._groups:
            torch._foreach_copy_(group.buffers, group.saved)

    def settle(self, skipped: bool | Tensor) -> None:
        """A step is over.

        Args:
            skipped: whether it is left out; a 0-d tensor, True or not 0 if so, where only the
                device knows.
        """
        if not isinstance(skipped, Tensor):
            (self.put_back if skipped else self.keep)()
            return
        if self._refresh():
            return
        for group in self._groups:
            now = torch.cat([buffer.reshape(-1) for buffer in group.buffers])
            torch.where((skipped == 0).to(now.device), now, group.flat, out=group.flat)
            torch._foreach_copy_(group.buffers, group.saved)

    def _refresh(self) -> bool:
        """Whether the model has other buffers than before; they are copied then."""
        tensors = [owner.get(name) for owner, name in self._places]
        if len(tensors) == len(self._tensors) and all(
            a is b for a, b in zip(tensors, self._tensors, strict=True)
        ):
            return False
        self._tensors = tensors
        kinds: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
        seen: set[int] = set()
        for tensor in tensors:
            if tensor is None or id(tensor) in seen or tensor.layout != torch.strided:
                continue
            seen.add(id(tensor))
            local = to_local(tensor).detach()
            if local.numel():
                kinds.setdefault((local.dtype, local.device), []).append(local)
        self._groups = [_Group(buffers) for buffers in kinds.values()]
        return True


class _Group:
    """Buffers of one dtype on one device, and a copy of them in one flat tensor."""

    def __init__(self, buffers: list[Tensor]) -> None:
        self.buffers = buffers
        self.flat = torch.cat([buffer.reshape(-1) for buffer in buffers])
        parts = self.flat.split([buffer.numel() for buffer in buffers])  # type: ignore[no-untyped-call]
        self.saved = [part.view(b.shape) for part, b in zip(parts, buffers, strict=True)]


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
