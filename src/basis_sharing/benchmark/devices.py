"""The device a benchmark runs on."""

import platform
from pathlib import Path

import torch

from basis_sharing.errors import RecipeError

DEVICES = ("auto", "cpu", "cuda", "mps")


def choose(name: str) -> torch.device:
    """Return the device of a name; ``"auto"``: CUDA, else MPS, else the CPU.

    Raises:
        RecipeError: There is no such device here.
    """
    if name not in DEVICES:
        raise RecipeError(f"unknown device {name!r}: choose from {', '.join(DEVICES)}.")
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(kind for kind, here in present.items() if here)
    if not present[name]:
        raise RecipeError(f"PyTorch finds no {name} device here: pass --device cpu, or install a build that does.")
    return torch.device(name)


def describe_device(device: torch.device) -> str:
    """Return the name of the processor or graphics card."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    information = Path("/proc/cpuinfo")
    if information.is_file():
        for line in information.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def synchronize(device: torch.device) -> None:
    """Wait until everything that was started on a device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
