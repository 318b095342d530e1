"""A run of MMEngine spends most of its time on the layout of its config dump; not in the tests."""

import mmengine.config.config
import pytest


@pytest.fixture(autouse=True, scope='session')
def plain_config_dumps():
    """Dump configs as they are: valid Python, without the line breaks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            mmengine.config.config, 'FormatCode', lambda text, *args, **kwargs: (text, True)
        )
        yield
