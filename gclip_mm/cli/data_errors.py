"""Explains broken images and annotations in one line that names the file."""

from __future__ import annotations

import os
import re
import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import cv2
from mmengine.dataset.base_dataset import Compose

from ..engine.configs import LaunchError

#: Local variables of data sets and readers that name the annotation file being read.
_PATHS = ('xml_path', 'local_path', 'filename', 'annotation_file', 'ann_file')


class DataError(Exception):
    """A file that a data pipeline could not load; the message is one line."""


class MissingFileError(DataError, FileNotFoundError):
    """A file that a data pipeline looked for."""


@contextmanager
def explain_bad_data() -> Iterator[None]:
    """Turn an error about the content of a data file into one line that names the file.

    Covers errors while annotations are read, and errors of a transform that loads (``Load...``) or
    that OpenCV or the operating system raises. Any other error of a transform is a mistake in code
    or config and keeps its traceback. While the context is active, pipelines name the file in the
    error, also in the worker processes of a data loader that are forked.

    Raises:
        LaunchError: a file could not be loaded.

    Example:
        >>> with explain_bad_data():
        ...     runner.train()
        LaunchError: data file 'a/7.jpg' cannot be used: LoadImageFromFile (loading.py, line 110):
        AssertionError: failed to load image: a/7.jpg
    """
    stock = Compose.__call__

    def call(self: Compose, data: Any) -> Any:
        try:
            return stock(self, data)
        except DataError:
            raise
        except Exception as error:
            transform = _failed_transform(error)
            if not _is_about_data(error, transform):
                raise
            path = data.get('img_path') if isinstance(data, dict) else None
            kind = MissingFileError if isinstance(error, FileNotFoundError) else DataError
            raise kind(_explain(path, error, transform)) from error

    Compose.__call__ = call
    try:
        yield
    except LaunchError:
        raise
    except Exception as error:
        message = _message(error)
        if message is None:
            raise
        raise LaunchError(message) from error
    finally:
        Compose.__call__ = stock


def _explain(path: Any, error: BaseException, where: str) -> str:
    """The line for an error.

    Args:
        path: the file.
        error: the error; it has been raised.
        where: the class that was reading the file.
    """
    cause = ' '.join(f'{type(error).__name__}: {error}'.split())
    frame = _frames(error)[0]
    # For those who suspect the code, in place of a traceback.
    place = f'{os.path.basename(frame.f_code.co_filename)}, line {frame.f_lineno}'
    return f'data file {str(path)!r} cannot be used: {where} ({place}): {cause}'


def _is_about_data(error: Exception, transform: str) -> bool:
    return transform.startswith('Load') or isinstance(error, OSError | cv2.error)


def _failed_transform(error: BaseException) -> str:
    """Class of the transform in which an error of a pipeline was raised."""
    for frame in _frames(error):
        if frame.f_code.co_name == '__call__' and isinstance(frame.f_locals.get('self'), Compose):
            return type(frame.f_locals.get('t')).__name__
    return ''


def _frames(error: BaseException) -> list[types.FrameType]:
    """The frames of a traceback, the innermost first."""
    frames: list[types.FrameType] = []
    trace = error.__traceback__
    while trace is not None:
        frames.insert(0, trace.tb_frame)
        trace = trace.tb_next
    return frames


def _message(error: BaseException) -> str | None:
    """The line for an error that has left a run; None if it is not about data."""
    text = str(error)
    lines = text.rstrip().splitlines()
    if isinstance(error, DataError):
        # torch repeats the traceback of a worker process in the message.
        return re.sub(r'^\S*Error: (?=data file)', '', lines[-1])
    if re.match(r'Caught \w+ in DataLoader worker', text) and 'loading.py"' in text:
        # The worker was not forked, and does not name the file by itself.
        return f'a data file cannot be used: {lines[-1]}'
    return _annotation_error(error)


def _annotation_error(error: BaseException) -> str | None:
    """The line for an error while a data set reads its annotations; None if it is another one."""
    chain = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) and cause not in chain:
        chain.append(cause)
    # Some versions of MMEngine wrap the errors of constructors: the first error names the cause.
    for error in reversed(chain):
        frames = _frames(error)
        names = [frame.f_code.co_name for frame in frames]
        if 'load_data_list' in names:
            break
    else:
        return None
    at = names.index('load_data_list')
    dataset = frames[at].f_locals.get('self')
    local = [frame.f_locals for frame in frames[: at + 1]]
    paths = [found.get(name) for found in local for name in _PATHS]
    paths = [path for path in paths if isinstance(path, str) and os.path.isfile(path)]
    path = paths[0] if paths else getattr(dataset, 'ann_file', '?')
    images = [str(found['img_path']) for found in local if 'img_path' in found]
    image = f', image {images[0]!r}' if images else ''
    return _explain(path, error, f'{type(dataset).__name__}{image}')
