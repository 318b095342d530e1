"""After an import of gclip_mm ``torch.load`` accepts MMEngine's checkpoints and nothing else."""

from __future__ import annotations

import io
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.logging import HistoryBuffer, MessageHub

import gclip_mm  # noqa: F401

pytestmark = pytest.mark.skipif(
    torch.__version__ < (2, 6), reason='torch.load accepted everything before 2.6'
)


def saved(value) -> io.BytesIO:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    buffer.seek(0)
    return buffer


@pytest.fixture
def checkpoint() -> dict:
    hub = MessageHub.get_instance('test_compat')
    for value in (3.0, 1.0, 2.0):
        hub.update_scalar('train/loss', value)
    hub.update_scalar('train/acc', np.float32(0.5))
    hub.update_info('best_score', np.float64(0.25))
    for dtype in ('bool', 'uint8', 'int32', 'int64', 'float16', 'float32', 'float64', 'U3', 'S3'):
        hub.update_info(f'array_{dtype}', np.zeros((2, 3), dtype))
        hub.update_info(f'empty_{dtype}', np.zeros((0, 2), dtype))
    meta = Config(dict(metainfo=dict(classes=('a', 'b'), extra=dict(palette=[(1, 2, 3)]))))
    return dict(message_hub=hub.state_dict(), meta=dict(dataset_meta=dict(meta.metainfo)))


def test_mmengine_checkpoint_loads_unchanged(checkpoint):
    loaded = torch.load(saved(checkpoint))
    assert loaded['meta'] == checkpoint['meta']
    hub = loaded['message_hub']
    buffer = hub['log_scalars']['train/loss']
    assert (buffer.mean(), buffer.min(), buffer.max(), buffer.current()) == (2, 1, 3, 2)
    for key, value in checkpoint['message_hub']['runtime_info'].items():
        np.testing.assert_array_equal(hub['runtime_info'][key], value)
        assert hub['runtime_info'][key].dtype == value.dtype


@pytest.mark.parametrize('other', ['numpy.core', 'numpy._core'])
def test_files_of_numpy_1_and_numpy_2_load(checkpoint, other):
    """They differ in the name of one module; the test rewrites it in the stored pickle."""
    ours = 'numpy._core' if hasattr(np, '_core') else 'numpy.core'
    text = saved(checkpoint).getvalue()
    # Inside the archive lengths and checksums would change, so rewrite the pickle and repack it.
    source = zipfile.ZipFile(io.BytesIO(text))
    target_buffer = io.BytesIO()
    with zipfile.ZipFile(target_buffer, 'w', zipfile.ZIP_STORED) as target:
        for item in source.infolist():
            data = source.read(item)
            if item.filename.endswith('data.pkl'):
                assert f'c{ours}.multiarray\n'.encode() in data
                data = data.replace(f'c{ours}.'.encode(), f'c{other}.'.encode())
            target.writestr(item, data)
    target_buffer.seek(0)
    loaded = torch.load(target_buffer)
    assert loaded['message_hub']['runtime_info']['best_score'] == 0.25


class Calls:
    """Pickles as a call of ``function(*arguments)``, as a crafted file would."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    'crafted',
    [
        Calls(getattr, HistoryBuffer, '__init__'),
        Calls(getattr, HistoryBuffer, '__dict__'),
        Calls(getattr, np.ndarray, 'tofile'),
        Calls(getattr, 'text', 'format'),
        Calls(print, 'run'),
        Calls(eval, '1'),
    ],
    ids=lambda crafted: f'{crafted.call[0].__name__}-{crafted.call[1][-1]}',
)
def test_crafted_files_are_refused(crafted):
    with pytest.raises(Exception, match='statistics methods of a HistoryBuffer|Unsupported') as e:
        torch.load(saved(dict(value=crafted)))
    assert e.type.__name__ in ('ValueError', 'UnpicklingError')


def test_torch_alone_refuses_the_same_file(checkpoint, tmp_path):
    """Otherwise the allow-list is not needed and can be removed."""
    path = tmp_path / 'c.pth'
    torch.save(checkpoint, path)
    code = f'import torch; torch.load({str(path)!r})'
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert 'Weights only load failed' in done.stderr
