import pytest

from gclip_mm.clipping.kernels import host_tensors


@pytest.fixture
def without_host_kernels(monkeypatch):
    """The ordinary path on the CPU, as where Numba is not installed."""
    monkeypatch.setattr(host_tensors, '_library', lambda: None)


@pytest.fixture(params=['compiled', 'torch'])
def either_path(request):
    """Both paths that value clipping has on a CPU, one after the other."""
    if request.param == 'torch':
        request.getfixturevalue('without_host_kernels')
    else:
        pytest.importorskip('numba')
        assert host_tensors._library() is not None
