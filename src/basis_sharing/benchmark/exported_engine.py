"""Exported models in their own runtime as the engine of a benchmark: a process for each, all of them in turns."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch

from basis_sharing.benchmark.rounds import Round
from basis_sharing.benchmark.turns import Timed
from basis_sharing.engines.base import ENGINES, MANIFEST, check_holds, installed_version
from basis_sharing.engines.process import ANSWER, Answer, Request, Step
from basis_sharing.errors import ModelError, RecipeError
from basis_sharing.results.benchmark import BenchmarkedModel, BenchmarkSettings, PeakMemory
from basis_sharing.results.export import ExportResult
from basis_sharing.run.worker import Worker, WorkerError


def check_exports(models: Sequence[str], engine: str, device: str, batch_sizes: Sequence[int]) -> None:
    """Make sure that folders are exports for an engine, and that its runtime is installed.

    Raises:
        RecipeError: The runtime is not installed, runs on the CPU only, or reads fewer sequences at once.
        ModelError: A folder is no export for it.
    """
    installed_version(ENGINES[engine].package, ENGINES[engine].extra)
    if device != "cpu":
        raise RecipeError(f"--engine {engine} runs on cpu, not on {device}: pass --device cpu.")
    for model in models:
        check_holds(Path(model), engine)
    largest = ENGINES[engine].largest_batch
    if largest is not None and max(batch_sizes, default=0) > largest:
        raise RecipeError(f"exports for {engine} read {largest} sequence at once: pass --batch-sizes {largest}.")


def described(model: str) -> BenchmarkedModel:
    """Return what an exported folder says about itself."""
    found = ExportResult.read(Path(model) / MANIFEST)
    return BenchmarkedModel(
        model=model,
        label=model,
        dtype=found.weights,
        parameters=found.parameters,
        bytes_in_memory=None,
        bytes_on_disk=found.bytes_on_disk,
        work=None,
        memory=None,
        timings=(),
    )


@dataclass
class Process:
    """An exported model in its runtime.

    Args:
        request: What the process runs.
        log: File for what the runtime writes to standard error.

    Attributes:
        memory: Its peaks of memory, once it was loaded and has generated; those of the platforms that say them.
    """

    request: Request
    log: Path
    memory: PeakMemory | None = field(default=None, init=False)
    _worker: Worker[Answer] | None = field(default=None, init=False)

    def start(self) -> None:
        """Start the process unless it runs, and wait until the model is loaded.

        Raises:
            ModelError: The runtime cannot load it.
        """
        if self._worker is None:
            self._worker = Worker("basis_sharing.engines.process", ANSWER, Answer, self.log)
            ready = self._ask(self.request)
            if ready.peak:
                loading = ready.peak - ready.libraries
                self.memory = PeakMemory(libraries=ready.libraries, loading=loading, running=loading, device=None)

    def generate(self, prompts: list[list[int]], new_tokens: int) -> Answer:
        """Choose the first token of each prompt and others after it; return the seconds.

        Raises:
            ModelError: The runtime failed.
        """
        answer = self._ask(Step(what="time", prompts=prompts, new_tokens=new_tokens))
        if self.memory is not None:
            self.memory = self.memory.model_copy(update={"running": answer.peak - self.memory.libraries})
        return answer

    def stop(self) -> None:
        """End the process."""
        if self._worker is not None:
            self._worker.stop()

    def _ask(self, line: Request | Step) -> Answer:
        assert self._worker is not None
        try:
            answer = self._worker.ask(line)
        except WorkerError as error:
            raise ModelError(f"{self.request.folder} ends its runtime ({error}): leave it out.") from None
        if answer.error is not None:
            raise ModelError(f"{self.request.folder}: {answer.error}.")
        return answer


class FirstTokens:
    """The prompts of a batch are read and get a token each."""

    def __init__(self, process: Process, prompts: list[list[int]]) -> None:
        self._process, self._prompts = process, prompts

    def prepare(self) -> None:
        """Start the runtime unless it runs."""
        self._process.start()

    def turn(self) -> float:
        """Read the prompts; return the seconds."""
        return self._process.generate(self._prompts, 0).first


class DecodedTokens:
    """One more token for every prompt of a batch, after the first one."""

    def __init__(self, process: Process, prompts: list[list[int]], new_tokens: int) -> None:
        self._process, self._prompts, self._new_tokens = process, prompts, new_tokens

    def prepare(self) -> None:
        """Start the runtime unless it runs."""
        self._process.start()

    def turn(self) -> float:
        """Read the prompts and decode; return the seconds of one token of the whole batch."""
        return self._process.generate(self._prompts, self._new_tokens).others / self._new_tokens


class Exported:
    """Runs exported models in their runtime; a context that ends their processes.

    Args:
        models: The folders.
        prompts: Tokens of the prompts, shape ``[largest batch, prompt tokens]``.
        settings: The settings of the benchmark.
        threads: Threads of the runtime.
        scratch: A folder for what the runtime writes.
    """

    def __init__(
        self, models: Sequence[str], prompts: torch.Tensor, settings: BenchmarkSettings, threads: int, scratch: Path
    ) -> None:
        self._settings, self._prompts = settings, prompts.tolist()
        self.processes = [
            Process(Request(folder=Path(model), engine=settings.engine, threads=threads), scratch / f"{number}.log")
            for number, model in enumerate(models)
        ]

    def __enter__(self) -> "Exported":
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            process.stop()

    def rounds(self) -> list[Round]:
        """Return the first token and decoding, both at every batch."""
        batches = self._settings.batch_sizes
        return [Round("first token", "exported", batch) for batch in batches] + [
            Round("decode", "exported", batch, turns=1) for batch in batches
        ]

    @contextmanager
    def contestants(self, round_: Round) -> Iterator[list[Timed]]:
        """Yield the work of one round for each model."""
        prompts = self._prompts[: round_.batch]
        if round_.workload == "first token":
            yield [FirstTokens(process, prompts) for process in self.processes]
        else:
            yield [DecodedTokens(process, prompts, self._settings.new_tokens) for process in self.processes]
