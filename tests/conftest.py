"""One thread per process: the suite runs in several processes that share the cores."""

import os

os.environ.setdefault('OMP_NUM_THREADS', '1')
os.environ.setdefault('MPLBACKEND', 'Agg')

import torch  # noqa: E402  reads the variable when it is imported

torch.set_num_threads(1)
