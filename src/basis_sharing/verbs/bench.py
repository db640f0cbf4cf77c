"""The story of one benchmark: check everything, measure memory, load, count the work, take turns."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

from basis_sharing.benchmark import devices
from basis_sharing.benchmark.compiling import check_compiler, compiled_models
from basis_sharing.benchmark.ideal import holds_stacked_experts, work_of
from basis_sharing.benchmark.memory import can_measure, peak_memory
from basis_sharing.benchmark.turns import Timed, paired_speed, spread, take_turns, uncertainty
from basis_sharing.benchmark.workloads import Decode, FirstToken, Prefill
from basis_sharing.errors import RecipeError
from basis_sharing.evaluation.perplexity import load
from basis_sharing.models.sizes import memory_bytes, parameter_count
from basis_sharing.models.source import dtype_name, load_config, named_dtype, resolve, stored_bytes
from basis_sharing.recipe.amounts import fraction
from basis_sharing.recipe.model import DTYPES
from basis_sharing.results.benchmark import (
    BenchmarkedModel,
    BenchmarkResult,
    BenchmarkSettings,
    Execution,
    PeakMemory,
    Timing,
    Work,
    Workload,
)
from basis_sharing.run.machine import choose
from basis_sharing.run.progress import Progress, ProgressCallback, silent
from basis_sharing.run.versions import software_versions

_DEFAULT_PROMPT = 512
_MOST = 4  # times the asked repeats, where speeds have not settled
_BUSY = 0.5  # of all processors


def bench(
    models: Sequence[str | Path],
    *,
    prompt_tokens: int | None = None,
    new_tokens: int = 32,
    batch_sizes: Sequence[int] = (1, 8),
    repeats: int = 5,
    precision: float | str | None = 0.02,
    compiled: bool = False,
    memory: bool = True,
    dtype: str = "auto",
    device: str = "auto",
    threads: int | None = None,
    seed: int = 0,
    progress: ProgressCallback = silent,
) -> BenchmarkResult:
    """Measure how fast models are and how much memory they need, side by side.

    All models are in memory at once and take turns after every forward pass, so that the quotients of their times hold
    on a machine that is busy with other things, too.

    Args:
        models: Folders (dense or compressed), GGUF files or hub ids; the first is what the others are compared with.
        prompt_tokens: Tokens of a prompt; None: 512, or what the models can read where that is less.
        new_tokens: Tokens decoded after it.
        batch_sizes: Sequences decoded at once.
        repeats: How often everything is measured at least, after a warm-up.
        precision: Go on, up to four times as often, until twice the standard error of every speed is at most this
            fraction of it (``0.02`` or ``"2%"``); None: stop after ``repeats``.
        compiled: Measure ``torch.compile`` with a static cache as well (minutes more for large models).
        memory: Measure peaks of memory, in fresh processes.
        dtype: ``"auto"`` (as in each checkpoint), ``"float32"``, ``"bfloat16"`` or ``"float16"``.
        device: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"mps"``.
        threads: Threads PyTorch uses on the CPU; None: as many as it chooses. On a machine with other work fewer
            threads than processors measure more steadily: a product waits for its slowest thread.
        seed: Seed of the prompts.
        progress: Receives one event per model loaded and per repeat.

    Returns:
        Times, quotients, peaks of memory and the work behind them.

    Raises:
        RecipeError: A setting is wrong, or there is no such device or no compiler.
        ModelError: A model cannot be loaded or compiled.
        CheckpointError: A compressed folder contradicts itself or is too new.
    """
    load_before = psutil.getloadavg()[0]
    names = [str(model) for model in models]
    _check(names, prompt_tokens, new_tokens, batch_sizes, repeats, threads, dtype)
    wanted = _precision(precision)
    configs = [load_config(resolve(model)).get_text_config() for model in models]
    target = choose(device)
    settings = BenchmarkSettings(
        prompt_tokens=_prompt_tokens(names, configs, prompt_tokens, new_tokens),
        new_tokens=new_tokens,
        batch_sizes=tuple(batch_sizes),
        repeats=repeats,
        precision=wanted,
        compiled=compiled,
        memory=memory,
        dtype=dtype,
        device=target.type,
        seed=seed,
    )
    if compiled:
        check_compiler()
    peaks = _peaks(names, settings, progress)
    loaded = []
    for done, name in enumerate(names, start=1):
        loaded.append(load(name, named_dtype(dtype))[0].to(target))
        progress(Progress("loading", done, len(names), "models"))
    generator = torch.Generator().manual_seed(seed)
    shape = (max(1, *settings.batch_sizes), settings.prompt_tokens)
    prompts = torch.randint(min(config.vocab_size for config in configs), shape, generator=generator).to(target)
    works = [work_of(model, prompts[:1]) for model in loaded]
    before = torch.get_num_threads()
    used = threads or before
    torch.set_num_threads(used)
    try:
        timings = _timings(loaded, works, prompts, settings, progress)
    finally:
        torch.set_num_threads(before)
    found = tuple(
        BenchmarkedModel(
            model=name,
            label=label,
            dtype=dtype_name(model.dtype),
            parameters=parameter_count(model),
            bytes_in_memory=memory_bytes(model),
            bytes_on_disk=stored_bytes(resolve(given)),
            work=work,
            memory=peak,
            timings=times,
        )
        for given, name, label, model, work, peak, times in zip(
            models, names, _labels(names), loaded, works, peaks, timings, strict=True
        )
    )
    return BenchmarkResult(
        settings=settings,
        device_name=devices.describe_device(target),
        threads=used,
        models=found,
        notes=tuple(_notes(found, loaded, settings, load_before)),
        versions=software_versions(),
    )


@dataclass(frozen=True)
class _Round:
    """One workload, on all models."""

    workload: Workload
    execution: Execution
    batch: int

    def contestants(self, models: Sequence[Any], prompts: torch.Tensor, new_tokens: int) -> list[Timed]:
        ids = prompts[: self.batch]
        if self.workload == "first token":
            return [FirstToken(model, ids) for model in models]
        forwards = [torch.compile(model.forward) if self.execution == "compiled" else None for model in models]
        if self.workload == "prefill":
            return [Prefill(model, ids, forward) for model, forward in zip(models, forwards, strict=True)]
        return [Decode(model, ids, new_tokens, forward) for model, forward in zip(models, forwards, strict=True)]

    def ideal_speed(self, first: Work, other: Work) -> float:
        if self.workload == "decode":
            return first.weight_bytes_per_step / other.weight_bytes_per_step
        if self.workload == "prefill":
            return first.prefill_multiply_adds / other.prefill_multiply_adds
        return first.first_token_multiply_adds / other.first_token_multiply_adds


def _timings(
    models: Sequence[Any],
    works: Sequence[Work],
    prompts: torch.Tensor,
    settings: BenchmarkSettings,
    progress: ProgressCallback,
) -> list[tuple[Timing, ...]]:
    rounds = [_Round("prefill", "eager", 1), _Round("first token", "eager", 1)]
    rounds += [_Round("decode", "eager", batch) for batch in settings.batch_sizes]
    if settings.compiled:
        rounds.append(_Round("prefill", "compiled", 1))
        rounds += [_Round("decode", "compiled", batch) for batch in settings.batch_sizes]
    most = settings.repeats if settings.precision is None else _MOST * settings.repeats
    done, total = 0, len(rounds) * (1 + settings.repeats)

    def repeated() -> None:
        nonlocal done
        done += 1
        progress(Progress("measuring speed", done, max(done, total), "repeats"))

    timings: list[list[Timing]] = [[] for _ in models]
    for round_ in rounds:
        turns = settings.new_tokens if round_.workload == "decode" else None

        def measure(round_: _Round = round_, turns: int | None = turns) -> list[tuple[float, ...]]:
            contestants = round_.contestants(models, prompts, settings.new_tokens)
            wanted = settings.precision or 0.0
            return take_turns(contestants, settings.repeats, turns, most=most, precision=wanted, repeated=repeated)

        if round_.execution == "compiled":
            with compiled_models(len(models)):
                seconds = measure()
        else:
            seconds = measure()
        total += len(seconds[0]) - settings.repeats
        for found, mine, work in zip(timings, seconds, works, strict=True):
            found.append(
                Timing(
                    workload=round_.workload,
                    execution=round_.execution,
                    batch=round_.batch,
                    seconds=mine,
                    time=spread(mine),
                    speed=paired_speed(seconds[0], mine),
                    ideal_speed=round_.ideal_speed(works[0], work),
                    uncertainty=None if mine is seconds[0] or len(mine) == 1 else uncertainty(seconds[0], mine),
                )
            )
    return [tuple(found) for found in timings]


def _peaks(names: Sequence[str], settings: BenchmarkSettings, progress: ProgressCallback) -> list[PeakMemory | None]:
    if not settings.memory or not can_measure():
        return [None for _ in names]
    peaks: list[PeakMemory | None] = []
    for done, name in enumerate(names, start=1):
        peaks.append(peak_memory(name, settings))
        progress(Progress("measuring memory", done, len(names), "models"))
    return peaks


def _check(
    names: Sequence[str],
    prompt_tokens: int | None,
    new_tokens: int,
    batch_sizes: Sequence[int],
    repeats: int,
    threads: int | None,
    dtype: str,
) -> None:
    if not names:
        raise RecipeError("no model was given: name at least one.")
    if dtype not in DTYPES:
        raise RecipeError(f"unknown dtype {dtype!r}: choose from {', '.join(DTYPES)}.")
    numbers = {"prompt-tokens": prompt_tokens, "new-tokens": new_tokens, "repeats": repeats, "threads": threads}
    for name, value in numbers.items():
        if value is not None and value < 1:
            raise RecipeError(f"--{name} {value} is too small: at least 1 is needed.")
    if not batch_sizes or min(batch_sizes) < 1:
        raise RecipeError(
            f"--batch-sizes {','.join(map(str, batch_sizes)) or '(none)'}: every batch needs at least 1 sequence, "
            "e.g. --batch-sizes 1,8."
        )


def _precision(asked: float | str | None) -> float | None:
    if asked is None:
        return None
    try:
        wanted = fraction(asked)
    except ValueError as error:
        raise RecipeError(f"--precision {error}") from None
    if not isinstance(wanted, float) or not 0 < wanted < 1:
        raise RecipeError(f"--precision {asked} is no use: give a fraction between 0 and 1, e.g. 2%, or off.")
    return wanted


def _prompt_tokens(names: Sequence[str], configs: Sequence[Any], asked: int | None, new_tokens: int) -> int:
    limits = [getattr(config, "max_position_embeddings", None) for config in configs]
    for name, limit in zip(names, limits, strict=True):
        needed = (asked or 1) + new_tokens
        if limit and needed > limit:
            raise RecipeError(
                f"{name} reads at most {limit} tokens, and a prompt of {asked or 1} with {new_tokens} new tokens has "
                f"{needed}: lower --prompt-tokens or --new-tokens."
            )
    return asked or min([_DEFAULT_PROMPT, *(limit - new_tokens for limit in limits if limit)])


def _labels(names: Sequence[str]) -> list[str]:
    """Return short names: the last part of each path where that tells them apart, numbered where nothing does."""
    short = [Path(name).name or name for name in names]
    if len(set(short)) < len(set(names)):
        short = list(names)
    counts, seen = Counter(short), Counter[str]()
    labels = []
    for name in short:
        seen[name] += 1
        labels.append(f"{name} ({seen[name]})" if counts[name] > 1 else name)
    return labels


def _unsettled(found: Sequence[BenchmarkedModel], settings: BenchmarkSettings) -> str | None:
    """Return what has to be said where speeds are not known as well as was asked."""
    timings = [(t.uncertainty, t) for model in found for t in model.timings if t.uncertainty is not None]
    if settings.precision is None or not timings:
        return None
    largest, worst = max(timings, key=lambda pair: pair[0])
    if largest <= settings.precision:
        return None
    return (
        f"after {len(worst.seconds)} repeats a speed ({worst.workload}, batch {worst.batch}) is still uncertain by "
        f"{largest:.1%}, more than the {settings.precision:.1%} asked for: the machine is busy with other "
        "things"
    )


def _notes(
    found: Sequence[BenchmarkedModel], models: Sequence[Any], settings: BenchmarkSettings, load_before: float
) -> list[str]:
    notes = []
    processors = psutil.cpu_count() or 1
    if load_before > _BUSY * processors:
        notes.append(
            f"the machine was busy when this began (load {load_before:.1f} on {processors} processors): trust the "
            "speeds rather than the times; fewer --threads than processors are steadier"
        )
    unsettled = _unsettled(found, settings)
    if unsettled is not None:
        notes.append(unsettled)
    dtypes = list(dict.fromkeys(model.dtype for model in found))
    if len(dtypes) > 1:
        notes.append(f"the models ran in different dtypes ({', '.join(dtypes)}): pass --dtype to compare them in one")
    if settings.memory and not can_measure():
        notes.append("this platform does not tell the peak memory of a process, so it was not measured")
    if settings.memory and settings.device == "mps":
        notes.append("PyTorch tells no peak of the memory on an MPS device, so only the process was measured")
    if any(holds_stacked_experts(model) for model in models):
        notes.append("the ideal of decoding counts all experts as read, though a token uses a few of them")
    return notes
