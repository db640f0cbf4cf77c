"""Settings of all tests."""

import os

# Pico models are too small to share between threads, and xdist already uses every core; processes that tests start
# inherit it, where waiting threads would cost them most.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch

torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the real model: its tests are the longest, and nobody should wait for them at the end."""
    items.sort(key=lambda item: item.get_closest_marker("real_model") is None)
