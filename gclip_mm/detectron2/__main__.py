"""``python -m gclip_mm.detectron2``: see :mod:`gclip_mm.detectron2.runner`."""

from .runner import main

main()
