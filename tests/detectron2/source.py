"""Where the source of the real Detectron2 is, if tests are to use it."""

from __future__ import annotations

import os
from pathlib import Path

#: The checkout that ``GCLIP_DETECTRON2_SOURCE`` names, or None: tests run on the stand-in.
SOURCE = (
    Path(os.environ['GCLIP_DETECTRON2_SOURCE'])
    if os.environ.get('GCLIP_DETECTRON2_SOURCE')
    else None
)
