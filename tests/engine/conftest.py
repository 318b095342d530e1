"""Speeds up MMEngine runs, which otherwise spend most of their time on formatting the config."""

import mmengine.config.config
import pytest


@pytest.fixture(autouse=True, scope='session')
def plain_config_dumps():
    """Dump configs unformatted: valid Python without line breaks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            mmengine.config.config, 'FormatCode', lambda text, *args, **kwargs: (text, True)
        )
        yield
