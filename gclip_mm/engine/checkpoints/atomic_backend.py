"""A file backend whose writes are atomic."""

from __future__ import annotations

import os
from pathlib import Path

from mmengine.fileio import LocalBackend, register_backend
from mmengine.utils import mkdir_or_exist

#: Its name in ``backend_args=dict(backend=...)``.
ATOMIC_BACKEND = 'gclip_local'


@register_backend(ATOMIC_BACKEND, force=True)
class AtomicLocalBackend(LocalBackend):
    """MMEngine's local backend with atomic writes.

    The bytes go to a file beside the target, which is flushed to the disk and then renamed to the
    target. An existing file stays unchanged until then.
    """

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Write bytes to a file; a missing folder is created."""
        filepath = os.path.abspath(filepath)
        folder = os.path.dirname(filepath)
        mkdir_or_exist(folder)
        partial = f'{filepath}.partial'
        with open(partial, 'wb') as file:
            file.write(obj)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, filepath)
        _sync_folder(folder)

    def put_text(self, obj: str, filepath: str | Path, encoding: str = 'utf-8') -> None:
        """Write text to a file."""
        self.put(obj.encode(encoding), filepath)


def _sync_folder(folder: str) -> None:
    """Make the new name survive a power failure, on systems that can sync a folder."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        pass
    finally:
        os.close(handle)
