"""Takes the configs and tools of a checkout into the wheel, below ``gclip_mm/.mim`` as mmdet does.

So that ``apply_clip(cfg, 'agc')`` finds its recipe where there is no checkout. All else is in
pyproject.toml.
"""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).resolve().parent


class BuildWithConfigs(build_py):
    """Copies what is not a package beside the modules; not in a checkout, which has it already."""

    def run(self):
        super().run()
        if self.editable_mode:
            return
        for name in ('configs', 'tools'):
            target = Path(self.build_lib) / 'gclip_mm' / '.mim' / name
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(HERE / name, target, ignore=shutil.ignore_patterns('__pycache__'))


setup(cmdclass={'build_py': BuildWithConfigs})
