"""Installing the package changes nothing that is installed already: asked of pip itself."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope='module')
def source(tmp_path_factory) -> Path:
    """A copy of what the wheel is built from, because setuptools writes beside it."""
    copy = tmp_path_factory.mktemp('source')
    for name in ('pyproject.toml', 'setup.py', 'MANIFEST.in', 'README.md', 'LICENSE'):
        shutil.copy(ROOT / name, copy)
    for name in ('gclip_mm', 'configs', 'tools'):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns('__pycache__'))
    return copy


def changes(target: str) -> dict[str, str]:
    """What ``pip install`` would install, by name.

    ``--no-index`` lets pip see no other releases, so that it fails if an installed one does not do.
    """
    command = [sys.executable, '-m', 'pip', 'install', '--dry-run', '--quiet', '--no-index']
    command += ['--no-build-isolation', '--report', '-', target]
    # An editable gclip_mm of this environment must not count.
    env = {**os.environ, 'PIP_DISABLE_PIP_VERSION_CHECK': '1', 'PIP_NO_INPUT': '1'}
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    report = json.loads(done.stdout)
    return {item['metadata']['name']: item['metadata']['version'] for item in report['install']}


def test_pip_install_changes_no_installed_package(source):
    if Version(importlib.metadata.version('setuptools')) < Version('77'):
        pytest.skip('the build needs setuptools 77, which pip would fetch for itself')
    assert set(changes(str(source))) <= {'gclip-mm'}


@pytest.mark.parametrize(
    ('package', 'oldest'),
    [('torch', '2.0.0'), ('mmengine', '0.10.0'), ('mmcv', '2.0.0'), ('mmdet', '3.0.0')],
)
def test_requirements_accept_the_oldest_release_that_is_supported(package, oldest):
    """Otherwise pip would replace it. The extra is ``.[mm]``; the core asks for torch alone."""
    project = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']
    asked = [*project['dependencies'], *project['optional-dependencies']['mm']]
    (requirement,) = [r for r in map(Requirement, asked) if r.name == package]
    assert requirement.specifier.contains(oldest)
