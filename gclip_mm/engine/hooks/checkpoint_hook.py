"""CheckpointHook that survives being killed while saving."""

from __future__ import annotations

from typing import Any

from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.hooks import CheckpointHook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from ..checkpoints.atomic_backend import ATOMIC_BACKEND
from ..checkpoints.resume import ResumeError, find_resumable
from .keys import reject_unknown_keys


@HOOKS.register_module()
@reject_unknown_keys
class GClipCheckpointHook(CheckpointHook):
    """MMEngine's ``CheckpointHook``, safe against a kill while it writes.

    It differs in three points:

    * A file is written beside its target and renamed to the target when it is complete.
    * With ``max_keep_ckpts`` the oldest checkpoint is deleted after the newest is written, not
      before, so that a complete one exists at any moment.
    * An automatic resume (``resume=True`` without ``load_from``) skips unreadable checkpoints with
      a warning and takes the last readable one
      (:func:`gclip_mm.engine.checkpoints.resume.find_resumable`).

    Args:
        args, kwargs: those of :class:`mmengine.hooks.CheckpointHook`. ``backend_args`` or
            ``file_client_args`` select another file backend, which must make its own writes safe.

    Raises:
        ClipConfigError: an unknown key; the message names the key and the valid ones.
        ResumeError: an automatic resume finds checkpoints, but no readable one.

    Example:
        >>> default_hooks = dict(checkpoint=dict(
        ...     type='GClipCheckpointHook', by_epoch=False, interval=500, max_keep_ckpts=2))
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.backend_args: dict[str, Any] | None
        is_remote = self.out_dir is not None and '://' in str(self.out_dir)
        if self.backend_args is None and self.file_client_args is None and not is_remote:
            self.backend_args = {'backend': ATOMIC_BACKEND}

    def before_run(self, runner: Runner) -> None:
        """Choose the checkpoint to resume from, before the runner does.

        Raises:
            ResumeError: there are checkpoints, but no readable one.
        """
        if runner._resume and runner._load_from is None:
            answer: list[Any] = [None]
            if is_main_process():
                try:
                    answer = [find_resumable(runner.work_dir)]
                except ResumeError as error:
                    # The other processes wait for the broadcast, also after an error.
                    answer = [error]
            broadcast_object_list(answer)
            if isinstance(answer[0], ResumeError):
                raise answer[0]
            runner._load_from = answer[0]

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict[str, Any]) -> None:
        outdated = None
        kept = self.keep_ckpt_ids if self.max_keep_ckpts > 0 else None
        if kept and len(kept) == self.max_keep_ckpts and kept[-1] != step:
            # The stock hook deletes before it saves, but only if its list is full.
            outdated = kept.popleft()
        super()._save_checkpoint_with_step(runner, step, meta)
        if outdated is not None and is_main_process():
            self._delete(outdated)

    def _delete(self, step: int) -> None:
        path = self.file_backend.join_path(self.out_dir, self.filename_tmpl.format(step))
        if self.file_backend.isfile(path):
            self.file_backend.remove(path)
        elif self.file_backend.isdir(path):
            self.file_backend.rmtree(path)
