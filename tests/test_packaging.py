"""Metadata of the distribution, pinned versions, and the core with PyTorch alone."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

import gclip_mm
from tests.plain_project import CONFIG, write_project

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
PYTHONS = ('3.10', '3.11', '3.12', '3.13')


@pytest.fixture(scope='module')
def pyproject() -> dict:
    return tomllib.loads((ROOT / 'pyproject.toml').read_text())


def requirements(text: str) -> list[Requirement]:
    lines = (line.split('#')[0].strip() for line in text.splitlines())
    return [Requirement(line) for line in lines if line]


# -- The wheel -------------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def wheel(tmp_path_factory) -> zipfile.ZipFile:
    """Build the wheel in a copy, because setuptools writes into the source tree."""
    copy = tmp_path_factory.mktemp('source')
    for name in ('pyproject.toml', 'setup.py', 'MANIFEST.in', 'README.md', 'LICENSE'):
        shutil.copy(ROOT / name, copy)
    for name in ('gclip_mm', 'configs', 'tools'):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns('__pycache__'))
    build = [sys.executable, '-m', 'pip', 'wheel', '-q', '--no-deps', '--no-build-isolation']
    subprocess.run([*build, '-w', str(copy / 'dist'), str(copy)], check=True, capture_output=True)
    (path,) = (copy / 'dist').glob('*.whl')
    return zipfile.ZipFile(path)


def test_wheel_metadata_has_name_version_and_only_torch(wheel, pyproject):
    (name,) = (name for name in wheel.namelist() if name.endswith('.dist-info/METADATA'))
    metadata = Parser().parsestr(wheel.read(name).decode())
    assert metadata['Name'] == 'gclip-mm'
    assert metadata['Version'] == gclip_mm.__version__
    assert metadata['License-Expression'] == 'Apache-2.0'
    assert SpecifierSet(metadata['Requires-Python']) == SpecifierSet('>=3.10,<3.14')
    core = [r for r in metadata.get_all('Requires-Dist') if 'extra ==' not in r]
    assert [Requirement(r).name for r in core] == ['torch']
    assert {'mm', 'onedl', 'dev'} <= set(metadata.get_all('Provides-Extra'))


def test_wheel_holds_the_package_and_its_licence(wheel):
    held = {name for name in wheel.namelist() if '.dist-info/' not in name}
    here = {path.relative_to(ROOT).as_posix() for path in (ROOT / 'gclip_mm').rglob('*.py')}
    assert held >= here | {'gclip_mm/py.typed'}
    assert {name.split('/')[0] for name in held} == {'gclip_mm'}
    for folder in ('configs', 'tools'):
        files = (
            path for path in (ROOT / folder).rglob('*') if path.suffix in ('.py', '.yml', '.sh')
        )
        assert held >= {f'gclip_mm/.mim/{path.relative_to(ROOT).as_posix()}' for path in files}
    (licence,) = (name for name in wheel.namelist() if name.endswith('LICENSE'))
    assert 'Apache License' in wheel.read(licence).decode()


def test_installed_package_finds_recipes_and_configs(wheel, tmp_path):
    """Runs from an unpacked wheel, outside the checkout."""
    pytest.importorskip('mmengine')
    wheel.extractall(tmp_path / 'site')
    code = (
        'import gclip_mm, mmengine; from gclip_mm.engine.configs import find_config\n'
        "cfg = mmengine.Config(dict(optim_wrapper=dict(optimizer=dict(type='SGD', lr=1))))\n"
        "print(gclip_mm.apply_clip(cfg, 'agc').optim_wrapper.clip_grad.type)\n"
        "print(find_config('gclip_mm::bccd/ssd_tiny_bccd.py'))\n"
    )
    env = {**os.environ, 'PYTHONPATH': str(tmp_path / 'site'), 'PYTHONWARNINGS': 'ignore'}
    done = subprocess.run(
        [sys.executable, '-c', code], env=env, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    rule, path = done.stdout.split()
    assert rule == 'AGC' and path.startswith(str(tmp_path / 'site' / 'gclip_mm' / '.mim'))


@pytest.mark.parametrize('by', ['script', 'mim'])
def test_installed_package_trains(by, wheel, tmp_path):
    """``mim train gclip_mm CONFIG``, and the script in the wheel that it calls."""
    pytest.importorskip('mmengine')
    if by == 'mim':
        pytest.importorskip('mim')
    site = tmp_path / 'site'
    wheel.extractall(site)
    write_project(tmp_path)
    config = tmp_path / 'mine.py'
    config.write_text(f"{CONFIG}optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.1))\n")
    if by == 'mim':
        command = ['-c', 'from mim.cli import cli; cli()', 'train', 'gclip_mm', str(config)]
    else:
        command = [str(site / 'gclip_mm' / '.mim' / 'tools' / 'train.py'), str(config)]
    flags = ['--work-dir', 'run', '--clip', 'type=NormClip,max_norm=0.5']
    done = subprocess.run(
        [sys.executable, *command, *flags],
        env={
            **os.environ,
            'PYTHONPATH': os.pathsep.join([str(site), str(tmp_path)]),
            'PYTHONWARNINGS': 'ignore',
        },
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (log,) = (tmp_path / 'run').glob('*/vis_data/scalars.json')
    norms = [json.loads(line)['grad_norm_post'] for line in log.read_text().splitlines()]
    assert norms == pytest.approx([0.5] * 6, rel=1e-4)
    assert str(ROOT) not in done.stdout + done.stderr, 'nothing comes from the checkout'


def test_the_project_has_addresses(pyproject):
    assert {'Homepage', 'Documentation', 'Issues', 'Changelog'} <= set(pyproject['project']['urls'])


def test_pre_commit_runs_the_pinned_ruff(pins):
    text = (ROOT / '.pre-commit-config.yaml').read_text()
    assert f'rev: v{pins["ruff"]["3.12"]} ' in text


# -- PyTorch alone ---------------------------------------------------------------------------------


def distributions_below(name: str) -> set[str]:
    """``name`` and all its installed dependencies."""
    found: set[str] = set()
    waiting = [name]
    while waiting:
        name = canonicalize_name(waiting.pop())
        if name in found:
            continue
        found.add(name)
        environment = default_environment() | {'extra': ''}
        for line in importlib.metadata.requires(name) or []:
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate(environment):
                waiting.append(requirement.name)
    return found


@pytest.fixture(scope='module')
def torch_alone(tmp_path_factory) -> Path:
    """A folder with PyTorch and its dependencies, and no other package."""
    folder = tmp_path_factory.mktemp('torch_alone')
    for name in distributions_below('torch'):
        for file in importlib.metadata.files(name) or []:
            top = Path(file).parts[0]
            source, target = Path(file.locate()).parents[len(file.parts) - 1] / top, folder / top
            if top not in ('..', '__pycache__') and not os.path.lexists(target):
                target.symlink_to(source)
    return folder


def test_core_works_with_torch_alone(torch_alone):
    """``-S`` leaves out site-packages, so even NumPy is missing."""
    code = """
import importlib.util, torch, gclip_mm
for name in ('mmengine', 'mmcv', 'mmdet', 'numpy', 'cv2'):
    assert importlib.util.find_spec(name) is None, name
model = torch.nn.Linear(4, 2)
optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
handle = gclip_mm.attach(optimizer, dict(max_norm=0.5), model=model)
before = [p.detach().clone() for p in model.parameters()]
(100 * model(torch.ones(3, 4)).sum()).backward()
optimizer.step()
moved = torch.cat([(p - b).flatten() for p, b in zip(model.parameters(), before)]).norm()
print(round(moved.item(), 4), hasattr(gclip_mm, 'GClipOptimWrapper'))
"""
    done = subprocess.run(
        [sys.executable, '-S', '-W', 'ignore', '-c', code],
        env={**os.environ, 'PYTHONPATH': os.pathsep.join([str(ROOT), str(torch_alone)])},
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == ['0.5', 'False'], done.stderr


# -- Pins ------------------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def pins() -> dict[str, dict[str, str]]:
    """Package name -> Python version -> pinned version."""
    return read_pins('constraints.txt')


def read_pins(file: str) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {}
    for pin in requirements((ROOT / 'requirements' / file).read_text()):
        (specifier,) = pin.specifier
        assert specifier.operator == '==', pin
        for python in PYTHONS:
            if pin.marker is None or pin.marker.evaluate({'python_version': python}):
                versions = found.setdefault(canonicalize_name(pin.name), {})
                assert python not in versions, f'{pin.name} is pinned twice for {python}'
                versions[python] = specifier.version
    return found


def test_every_installed_package_is_pinned(pins):
    names = {
        canonicalize_name(r.name)
        for file in ('common.txt', 'onedl.txt')
        for r in requirements((ROOT / 'requirements' / file).read_text())
    }
    setup = (ROOT / 'scripts' / 'setup.sh').read_text()
    for line in re.findall(r"MM_PACKAGES='(.*)'", setup) + re.findall(r'MMCV=(\S+)', setup):
        names |= set(line.split())
    names |= {'torch', 'pip', 'setuptools', 'wheel', 'ninja'}
    assert {name: sorted(pins.get(name, {})) for name in names} == dict.fromkeys(
        names, sorted(PYTHONS)
    )


def test_pins_satisfy_the_requirements_of_the_package(pins, pyproject):
    project = pyproject['project']
    asked = list(project['dependencies'])
    for extra in project['optional-dependencies'].values():
        asked += [line for line in extra if not line.startswith('gclip-mm')]
    # What `make docs` installs beside the environment has pins of its own.
    pins = read_pins('docs.txt') | pins
    for requirement in map(Requirement, asked):
        for python, version in pins[canonicalize_name(requirement.name)].items():
            assert requirement.specifier.contains(version), (requirement, python)


def test_this_environment_has_the_pinned_versions(pins):
    """Applies to the environment of `make test`; skipped in any other one."""
    if Path(sys.prefix).name not in ('.venv', '.venv-onedl'):
        pytest.skip('not the environment that make built')
    python = f'{sys.version_info[0]}.{sys.version_info[1]}'
    wrong = {
        name: (installed.split('+')[0], versions[python])
        for name, versions in pins.items()
        # setuptools vendors packages that only older Python versions have to install.
        if python in versions
        and (installed := installed_version(name)) is not None
        and installed.split('+')[0] != versions[python]
    }
    assert wrong == {}


def installed_version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
