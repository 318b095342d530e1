"""Stand-in for what gclip_mm and its tests use of Detectron2, which has no wheel on PyPI.

It keeps the order of events, the names and the errors of Detectron2, and lacks everything else. The
tests that run on it also run on the real package (``make test-detectron2``), which is what keeps it
faithful.
"""
