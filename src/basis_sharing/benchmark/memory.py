"""Peaks of memory, each measured in a fresh process."""

import json
import subprocess
import sys
from pathlib import Path

from basis_sharing.errors import BasisSharingError, ModelError
from basis_sharing.results.benchmark import BenchmarkSettings, PeakMemory

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_RESET_PEAK = "5"  # proc(5): resets VmHWM to the current resident size


def can_measure() -> bool:
    """Return whether the peak memory of a process can be read and reset on this platform, as on Linux."""
    return _STATUS.is_file() and _CLEAR.is_file()


def peak_memory(model: str, settings: BenchmarkSettings) -> PeakMemory:
    """Return the peaks of memory while a fresh process loads a model and generates for the largest batch.

    Raises:
        ModelError: The model cannot be loaded, or the process was killed for lack of memory.
    """
    request = json.dumps({"model": model, "settings": settings.model_dump()})
    done = subprocess.run([sys.executable, "-m", __name__, request], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"it ended with code {done.returncode}"]
        raise ModelError(
            f"the process that measures the memory of {model} failed ({lines[-1]}): there may be too little memory; "
            "use smaller batches, or pass --no-memory."
        )
    answer = json.loads(done.stdout.splitlines()[-1])
    if "error" in answer:
        raise ModelError(answer["error"])
    return PeakMemory.model_validate(answer)


def measure_here(model: str, settings: BenchmarkSettings) -> PeakMemory:
    """Return the peaks of memory measured in this process, which should be a fresh one.

    Raises:
        ModelError: The model cannot be loaded.
    """
    import torch

    from basis_sharing.benchmark.workloads import Decode
    from basis_sharing.checkpoint.loading import load_any
    from basis_sharing.models.source import named_dtype

    device = torch.device(settings.device)
    libraries = _reset()
    loaded, _ = load_any(model, named_dtype(settings.dtype), device)
    loading = _peak() - libraries
    _reset()
    prompts = torch.zeros(max(settings.batch_sizes), settings.prompt_tokens, dtype=torch.long, device=device)
    decode = Decode(loaded, prompts, settings.new_tokens)
    decode.prepare()
    for _step in range(settings.new_tokens):
        decode.turn()
    return PeakMemory(
        libraries=libraries,
        loading=loading,
        running=_peak() - libraries,
        device=torch.cuda.max_memory_allocated() if device.type == "cuda" else None,
    )


def _reset() -> int:
    """Reset the peak, and return the bytes that are resident now."""
    _CLEAR.write_text(_RESET_PEAK, encoding="ascii")
    return _peak()


def _peak() -> int:
    line = next(line for line in _STATUS.read_text(encoding="ascii").splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def main(request: str) -> None:
    """Measure for one request of :func:`peak_memory`, and print the peaks or the error as JSON."""
    arguments = json.loads(request)
    try:
        peaks = measure_here(arguments["model"], BenchmarkSettings.model_validate(arguments["settings"]))
    except BasisSharingError as error:
        print(json.dumps({"error": str(error)}))
        return
    print(peaks.model_dump_json())


if __name__ == "__main__":
    main(sys.argv[1])
