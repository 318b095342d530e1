"""Matplotlib, set up so that it needs no display."""

from __future__ import annotations

import matplotlib
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

matplotlib.use('Agg')

__all__ = ['Axes', 'Figure', 'plt']
