"""Notes on a benchmark: what its reader should know about the circumstances."""

from collections.abc import Sequence

import psutil

from basis_sharing.results.benchmark import BenchmarkedModel, BenchmarkSettings

_BUSY = 0.5  # of all processors


def benchmark_notes(
    measured: Sequence[BenchmarkedModel],
    settings: BenchmarkSettings,
    load_before: float,
    experts: bool,
    no_compiler: bool,
) -> list[str]:
    """Return notes for the reader, one sentence each.

    Args:
        measured: All measurements.
        settings: The settings of the benchmark.
        load_before: Load average of the machine before the benchmark.
        experts: Whether a model stores many experts in one parameter.
        no_compiler: Whether compiled execution was left out because there is no compiler.
    """
    notes = []
    processors = psutil.cpu_count() or 1
    if load_before > _BUSY * processors:
        notes.append(
            f"the machine was busy when this began (load {load_before:.1f} on {processors} processors): trust the "
            "speeds rather than the times; fewer --threads than processors are steadier"
        )
    if no_compiler:
        notes.append("PyTorch finds no C++ compiler, so compiled execution was not measured")
    notes += _precision_note(measured, settings)
    notes += [note for model in measured for note in _prediction_note(model, settings)]
    dtypes = list(dict.fromkeys(model.dtype for model in measured))
    if len(dtypes) > 1:
        notes.append(f"the models ran in different dtypes ({', '.join(dtypes)}): pass --dtype to compare them in one")
    if settings.memory and any(model.memory is None for model in measured):
        notes.append("this platform does not report the peak memory of a process, so it was not measured")
    if settings.memory and settings.device == "mps":
        notes.append("PyTorch reports no peak of the memory on an MPS device, so only the process was measured")
    if experts:
        notes.append("the ideal of decoding counts the experts of one token as read: larger batches read more of them")
    return notes


def _precision_note(measured: Sequence[BenchmarkedModel], settings: BenchmarkSettings) -> list[str]:
    """Return a note if the speeds have not reached the precision of the settings."""
    timings = [(t.uncertainty, t) for model in measured for t in model.timings if t.uncertainty is not None]
    if settings.precision is None or not timings:
        return []
    largest, worst = max(timings, key=lambda pair: pair[0])
    if largest <= settings.precision:
        return []
    return [
        f"after {len(worst.seconds)} repeats a speed ({worst.workload}, batch {worst.batch}) is still uncertain by "
        f"{largest:.1%}, more than the {settings.precision:.1%} asked for: the machine is busy with other "
        "things"
    ]


def _prediction_note(model: BenchmarkedModel, settings: BenchmarkSettings) -> list[str]:
    """Return a note if the plan of a model predicted speeds for other sizes than those that were measured."""
    predicted = model.predicted
    if predicted is None:
        return []
    measured = [
        timing.workload for timing in model.timings if model.predicted_speed(timing, settings.prompt_tokens) is not None
    ]
    missing = []
    if predicted.prefill is not None and {"prefill", "first token"}.isdisjoint(measured):
        missing.append(f"a prefill of {predicted.prefill.tokens} tokens (--prompt-tokens)")
    if predicted.decode is not None and "decode" not in measured:
        missing.append(f"decoding at batch {predicted.decode.batch} (--batch-sizes)")
    if not missing:
        return []
    return [f"the plan of {model.label} predicted the speed of {' and of '.join(missing)}, which was not measured"]
