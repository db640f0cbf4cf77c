"""``bench``: measure speed and memory of several models side by side."""

import gc
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import torch

from basis_sharing.benchmark.compiling import finds_compiler
from basis_sharing.benchmark.exported_engine import Exported, check_exports, described
from basis_sharing.benchmark.ideal import holds_stacked_experts, work_of
from basis_sharing.benchmark.memory import can_measure, peak_memory
from basis_sharing.benchmark.notes import benchmark_notes
from basis_sharing.benchmark.prediction import predicted_speed
from basis_sharing.benchmark.pytorch_engine import PyTorch
from basis_sharing.benchmark.rounds import time_rounds
from basis_sharing.benchmark.vllm_engine import Served, Vllm, cache_bytes, check_vllm
from basis_sharing.checkpoint.loading import load_any
from basis_sharing.engines.base import ENGINES
from basis_sharing.errors import RecipeError
from basis_sharing.evaluation.measuring import check_least, torch_dtype
from basis_sharing.models.sizes import memory_bytes, parameter_count
from basis_sharing.models.source import dtype_name, load_config, resolve, stored_bytes
from basis_sharing.recipe.amounts import fraction
from basis_sharing.recipe.model import DtypeName
from basis_sharing.results.benchmark import (
    BenchmarkedModel,
    BenchmarkResult,
    BenchmarkSettings,
    PeakMemory,
    Timing,
)
from basis_sharing.run.devices import describe_device
from basis_sharing.run.machine import choose
from basis_sharing.run.progress import Progress, ProgressCallback, silent
from basis_sharing.run.versions import software_versions

_DEFAULT_PROMPT = 512


def bench(
    models: Sequence[str | Path],
    *,
    prompt_tokens: int | None = None,
    new_tokens: int = 32,
    batch_sizes: Sequence[int] = (1, 8),
    repeats: int = 5,
    precision: float | str | None = 0.02,
    compile: bool | None = None,
    engine: str = "pytorch",
    memory: bool = True,
    dtype: DtypeName = "auto",
    device: str | None = None,
    threads: int | None = None,
    seed: int = 0,
    progress: ProgressCallback = silent,
) -> BenchmarkResult:
    """Measure how fast models are and how much memory they need, side by side.

    The models alternate after every forward pass, so that the quotients of their times are valid on a busy machine too.

    Args:
        models: Folders (dense or compressed), GGUF files or hub ids; the others are compared with the first.
        prompt_tokens: Tokens of a prompt; None: 512, or the models' limit if that is smaller.
        new_tokens: Tokens decoded after the prompt.
        batch_sizes: Numbers of sequences decoded at once.
        repeats: Smallest number of repeats, after a warm-up.
        precision: Repeat, up to four times as often, until twice the standard error of every speed is at most this
            fraction of it (``0.02`` or ``"2%"``); None or ``"off"``: stop after ``repeats``.
        compile: Measure ``torch.compile`` as well, with CUDA graphs on CUDA, or let vLLM compile; takes minutes more.
            None: if PyTorch finds a compiler.
        engine: ``"pytorch"``: transformers, eager and compiled. ``"vllm"``: vLLM, each model in a process of its own.
            ``"onnx"`` or ``"openvino"``: that runtime, likewise, on folders that :func:`export` wrote.
        memory: Measure peaks of memory, in fresh processes; not with vLLM, which takes its memory in advance.
        dtype: ``"auto"`` (as in each checkpoint), ``"float32"``, ``"bfloat16"`` or ``"float16"``.
        device: ``"auto"`` (CUDA, else MPS, else the CPU), ``"cpu"``, ``"cuda"`` or ``"mps"``; None: ``"auto"``.
        threads: Threads of PyTorch on the CPU, fewer are steadier on a busy machine; None: PyTorch's default.
        seed: Seed of the prompts, which are random tokens.
        progress: Receives one event per model loaded and per repeat.

    Returns:
        Times in seconds, quotients, peaks of memory in bytes, and the amount of work.

    Raises:
        BasisSharingError: A setting is wrong, there is no such device, compiler or engine, or a model cannot be loaded.

    Example:
        >>> result = basis_sharing.bench(["./llama", "./llama-20"], repeats=2, compile=False)
        >>> print({timing.workload: timing.speed.median for timing in result.models[1].timings})
    """
    load_before = psutil.getloadavg()[0]
    shape = _Shape(prompt_tokens, new_tokens, tuple(batch_sizes), repeats)
    run = _Run([str(model) for model in models], dtype, device, threads, compile, load_before)
    settings = _settings(run, shape, _Choices(precision, engine, memory, seed))
    return _benchmark(run, settings, progress)


@dataclass(frozen=True)
class _Shape:
    """The prompts, batches and repeats of a benchmark, as given by the caller."""

    prompt_tokens: int | None
    new_tokens: int
    batch_sizes: tuple[int, ...]
    repeats: int


@dataclass(frozen=True)
class _Run:
    """The models of a benchmark, and where and how they run."""

    names: list[str]
    dtype: DtypeName
    device: str | None
    threads: int | None
    compile: bool | None
    load_before: float


@dataclass(frozen=True)
class _Choices:
    """What is measured, and how, as given by the caller."""

    precision: float | str | None
    engine: str
    memory: bool
    seed: int


def _settings(run: _Run, shape: _Shape, choices: _Choices) -> BenchmarkSettings:
    """Return the settings of the result, checked before any model is loaded.

    Raises:
        RecipeError: A setting is wrong, or there is no compiler or engine.
        ModelError: The configuration of a model cannot be read.
    """
    _check(run, shape)
    engines = ("pytorch", "vllm", *sorted(ENGINES))
    if choices.engine not in engines:
        raise RecipeError(f"unknown engine {choices.engine!r}: choose from {', '.join(engines)}.")
    device = choose(run.device or "auto").type
    if choices.engine in ENGINES:
        check_exports(run.names, choices.engine, device, shape.batch_sizes)
    precision_fraction = _precision(choices.precision)
    settings = BenchmarkSettings(
        prompt_tokens=_prompt_tokens(run.names, _configs(run.names), shape.prompt_tokens, shape.new_tokens),
        new_tokens=shape.new_tokens,
        batch_sizes=shape.batch_sizes,
        repeats=shape.repeats,
        precision=precision_fraction,
        compiled=choices.engine not in ENGINES and _compiled(run.compile),
        memory=choices.memory and choices.engine != "vllm",
        dtype=run.dtype,
        device=device,
        seed=choices.seed,
        engine=choices.engine,
    )
    if choices.engine == "vllm":
        check_vllm(settings.device)
    return settings


def _compiled(wanted: bool | None) -> bool:
    """Return whether compiled execution is measured; None: if there is a compiler.

    Raises:
        RecipeError: It is wanted, and there is no compiler.
    """
    found = wanted is not False and finds_compiler()
    if wanted and not found:
        raise RecipeError(
            "--compile needs a C++ compiler, and PyTorch finds none: install one (such as g++), or pass --no-compile."
        )
    return found


def _benchmark(run: _Run, settings: BenchmarkSettings, progress: ProgressCallback) -> BenchmarkResult:
    """Return the result: measure memory, load the models, count their work, and time them in turns."""
    target = choose(settings.device)
    peaks = _peaks(run.names, settings, progress) if settings.engine == "pytorch" else [None for _ in run.names]
    prompts = _prompts(run.names, settings).to(target)
    versions = software_versions()
    with _threads(run.threads) as used:
        if settings.engine == "vllm":
            models, timings, versions["vllm"] = _in_vllm(run, settings, prompts, used, progress)
        elif settings.engine in ENGINES:
            models, timings, peaks = _as_exports(run, settings, prompts, used, progress)
            package = ENGINES[settings.engine].package
            versions[package] = version(package)
        else:
            models, timings = _in_pytorch(run, settings, prompts, progress)
    measured = tuple(
        model.described.model_copy(update={"label": label, "memory": peak, "timings": times})
        for label, model, peak, times in zip(_labels(run.names), models, peaks, timings, strict=True)
    )
    notes = benchmark_notes(
        measured,
        settings,
        run.load_before,
        experts=any(model.experts for model in models),
        no_compiler=run.compile is None and not settings.compiled and settings.engine not in ENGINES,
    )
    return BenchmarkResult(
        settings=settings,
        device_name=describe_device(target),
        threads=used,
        models=measured,
        notes=tuple(notes),
        versions=versions,
    )


@dataclass(frozen=True)
class _Described:
    """A model without its memory and timings, and whether it stores many experts in one parameter."""

    described: BenchmarkedModel
    experts: bool


_Timings = list[tuple[Timing, ...]]


def _in_pytorch(
    run: _Run, settings: BenchmarkSettings, prompts: torch.Tensor, progress: ProgressCallback
) -> tuple[list[_Described], _Timings]:
    """Load all models and time them in this process."""
    loaded, models = [], []
    for done, name in enumerate(run.names, start=1):
        loaded.append(load_any(name, torch_dtype(run.dtype), prompts.device)[0])
        progress(Progress("loading", done, len(run.names), "models"))
    models = [_described(name, model, prompts) for name, model in zip(run.names, loaded, strict=True)]
    works = [model.described.work for model in models]
    return models, time_rounds(PyTorch(loaded, prompts, settings), works, settings, progress)


def _in_vllm(
    run: _Run, settings: BenchmarkSettings, prompts: torch.Tensor, threads: int, progress: ProgressCallback
) -> tuple[list[_Described], _Timings, str]:
    """Load one model after the other to count its work, and time all of them in vLLM; return its version too."""
    models, served = [], []
    with tempfile.TemporaryDirectory() as folder:
        for done, name in enumerate(run.names, start=1):
            model, tokenizer = load_any(name, torch_dtype(run.dtype), prompts.device)
            models.append(_described(name, model, prompts))
            path = name
            if resolve(name).kind == "gguf":  # which vLLM would run in its few bits
                path = f"{folder}/{done}"
                for part in (model, tokenizer):
                    part.save_pretrained(path)
            served.append(Served(name, path, dtype_name(model.dtype), cache_bytes(model)))
            del model, tokenizer
            gc.collect()
            progress(Progress("loading", done, len(run.names), "models"))
        if settings.device == "cuda":
            torch.cuda.empty_cache()
        works = [model.described.work for model in models]
        with Vllm(served, prompts, settings, threads, Path(folder)) as engine:
            timings = time_rounds(engine, works, settings, progress)
            return models, timings, engine.version


def _as_exports(
    run: _Run, settings: BenchmarkSettings, prompts: torch.Tensor, threads: int, progress: ProgressCallback
) -> tuple[list[_Described], _Timings, list[PeakMemory | None]]:
    """Time exported folders in their runtime; return the peaks of memory of their processes too."""
    models = [_Described(described(name), experts=False) for name in run.names]
    with tempfile.TemporaryDirectory() as folder:
        with Exported(run.names, prompts, settings, threads, Path(folder)) as engine:
            timings = time_rounds(engine, [None for _ in models], settings, progress)
        peaks = [process.memory if settings.memory else None for process in engine.processes]
    return models, timings, peaks


def _described(name: str, model: Any, prompts: torch.Tensor) -> _Described:
    described = BenchmarkedModel(
        model=name,
        label=name,
        dtype=dtype_name(model.dtype),
        parameters=parameter_count(model),
        bytes_in_memory=memory_bytes(model),
        bytes_on_disk=stored_bytes(resolve(name)),
        work=work_of(model, prompts[:1]),
        memory=None,
        timings=(),
        predicted=predicted_speed(name, model.config),
    )
    return _Described(described, holds_stacked_experts(model))


def _configs(names: Sequence[str]) -> list[Any]:
    return [load_config(resolve(name)).get_text_config() for name in names]


def _prompts(names: Sequence[str], settings: BenchmarkSettings) -> torch.Tensor:
    """Return random tokens of the smallest vocabulary, shape ``[largest batch, prompt tokens]``."""
    shape = (max(1, *settings.batch_sizes), settings.prompt_tokens)
    generator = torch.Generator().manual_seed(settings.seed)
    return torch.randint(min(config.vocab_size for config in _configs(names)), shape, generator=generator)


@contextmanager
def _threads(count: int | None) -> Iterator[int]:
    """Set the number of PyTorch threads within the context and yield it; None: keep PyTorch's number."""
    before = torch.get_num_threads()
    used = count or before
    torch.set_num_threads(used)
    try:
        yield used
    finally:
        torch.set_num_threads(before)


def _peaks(names: Sequence[str], settings: BenchmarkSettings, progress: ProgressCallback) -> list[PeakMemory | None]:
    if not settings.memory or not can_measure():
        return [None for _ in names]
    peaks: list[PeakMemory | None] = []
    for done, name in enumerate(names, start=1):
        peaks.append(peak_memory(name, settings))
        progress(Progress("measuring memory", done, len(names), "models"))
    return peaks


def _check(run: _Run, shape: _Shape) -> None:
    if not run.names:
        raise RecipeError("no model was given: name at least one.")
    torch_dtype(run.dtype)
    numbers = {
        "prompt_tokens": shape.prompt_tokens,
        "new_tokens": shape.new_tokens,
        "repeats": shape.repeats,
        "threads": run.threads,
    }
    check_least({name: (value, 1) for name, value in numbers.items()})
    if not shape.batch_sizes or min(shape.batch_sizes) < 1:
        raise RecipeError(
            f"--batch-sizes {','.join(map(str, shape.batch_sizes)) or '(none)'}: every batch needs at least 1 "
            "sequence, e.g. --batch-sizes 1,8."
        )


def _precision(setting: float | str | None) -> float | None:
    """Return the precision as a fraction; None: the number of repeats is fixed.

    Raises:
        RecipeError: It is no fraction between 0 and 1.
    """
    if setting is None or setting == "off":
        return None
    try:
        value = fraction(setting)
    except ValueError as error:
        raise RecipeError(f"--precision {error}") from None
    if not isinstance(value, float) or not 0 < value < 1:
        raise RecipeError(f"--precision {setting} is no use: give a fraction between 0 and 1, e.g. 2%, or off.")
    return value


def _prompt_tokens(names: Sequence[str], configs: Sequence[Any], setting: int | None, new_tokens: int) -> int:
    """Return the number of prompt tokens; None: the default, or the models' limit if that is smaller.

    Raises:
        RecipeError: Prompt and new tokens exceed the limit of a model.
    """
    limits = [getattr(config, "max_position_embeddings", None) for config in configs]
    for name, limit in zip(names, limits, strict=True):
        needed = (setting or 1) + new_tokens
        if limit and needed > limit:
            raise RecipeError(
                f"{name} reads at most {limit} tokens, and a prompt of {setting or 1} with {new_tokens} new tokens has "
                f"{needed}: lower --prompt-tokens or --new-tokens."
            )
    return setting or min([_DEFAULT_PROMPT, *(limit - new_tokens for limit in limits if limit)])


def _labels(names: Sequence[str]) -> list[str]:
    """Return short names: the last part of each path if these differ, else the paths; equal names are numbered."""
    short = [Path(name).name or name for name in names]
    if len(set(short)) < len(set(names)):
        short = list(names)
    counts, seen = Counter(short), Counter[str]()
    labels = []
    for name in short:
        seen[name] += 1
        labels.append(f"{name} ({seen[name]})" if counts[name] > 1 else name)
    return labels
