"""Settings of all tests."""

import os

import torch

# Pico models are too small to share between threads, and xdist already uses every core.
torch.set_num_threads(1)
os.environ.setdefault("HF_HUB_OFFLINE", "1")
