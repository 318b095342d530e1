"""The checkpointer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..utils import comm


class DetectionCheckpointer:
    """Saves the model, and the state of named objects; a file names the last checkpoint."""

    def __init__(self, model: nn.Module, save_dir: str = '', **checkpointables: Any) -> None:
        self.model = getattr(model, 'module', model)
        self.checkpointables = checkpointables
        self.save_dir = Path(save_dir)

    def save(self, name: str, **extra: Any) -> None:
        if not comm.is_main_process():
            return
        data = {key: item.state_dict() for key, item in self.checkpointables.items()}
        torch.save(
            {'model': self.model.state_dict(), **data, **extra}, self.save_dir / f'{name}.pth'
        )
        (self.save_dir / 'last_checkpoint').write_text(f'{name}.pth')

    def has_checkpoint(self) -> bool:
        return (self.save_dir / 'last_checkpoint').exists()

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        resume = resume and self.has_checkpoint()
        if resume:
            path = str(self.save_dir / (self.save_dir / 'last_checkpoint').read_text())
        if not path:
            return {}
        checkpoint = torch.load(path, map_location='cpu')
        self.model.load_state_dict(checkpoint.pop('model'), strict=False)
        for key, item in self.checkpointables.items() if resume else ():
            if key in checkpoint:
                item.load_state_dict(checkpoint.pop(key))
        return checkpoint
