import pytest

from gclip_mm.clipping.kernels import host_tensors


@pytest.fixture
def without_host_kernels(monkeypatch):
    """Take the torch path on the CPU, as if Numba were not installed."""
    monkeypatch.setattr(host_tensors, '_library', lambda: None)


@pytest.fixture(params=['compiled', 'torch'])
def either_path(request):
    """Run the test on each of the two paths of value clipping on a CPU."""
    if request.param == 'torch':
        request.getfixturevalue('without_host_kernels')
    else:
        pytest.importorskip('numba')
        assert host_tensors._library() is not None
