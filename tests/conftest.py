"""Settings of all tests."""

import os

# Pico models are too small to share between threads, and xdist already uses every core; processes that tests start
# inherit it, where waiting threads would cost them most.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch

torch.set_num_threads(1)
