"""The same as ``gclip test``."""

import sys
from importlib import import_module
from pathlib import Path

# A checkout runs without being installed, and takes precedence over an installed copy.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

if __name__ == '__main__':
    sys.exit(import_module('gclip_mm.cli.test').main(prog=Path(__file__).name))
