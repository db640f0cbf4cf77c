"""PyTorch as the engine of a benchmark: models of transformers in this process, eager and compiled."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch

from basis_sharing.benchmark.compiling import compiled_forward, compiled_models
from basis_sharing.benchmark.rounds import Round
from basis_sharing.benchmark.turns import Timed
from basis_sharing.benchmark.workloads import Decode, FirstToken, Prefill
from basis_sharing.results.benchmark import BenchmarkSettings, Execution


class PyTorch:
    """Runs models in this process.

    Args:
        models: The models, on one device.
        prompts: Tokens of the prompts, shape ``[largest batch, prompt tokens]``, on the models' device.
        settings: The settings of the benchmark.
    """

    def __init__(self, models: Sequence[Any], prompts: torch.Tensor, settings: BenchmarkSettings) -> None:
        self._models, self._prompts, self._settings = models, prompts, settings

    def rounds(self) -> list[Round]:
        """Return a prefill and decoding, eager and compiled, and the first token."""
        executions: tuple[Execution, ...] = ("eager", "compiled") if self._settings.compiled else ("eager",)
        rounds = []
        for execution in executions:
            rounds.append(Round("prefill", execution, 1))
            if execution == "eager":
                rounds.append(Round("first token", execution, 1))
            rounds += [
                Round("decode", execution, batch, turns=self._settings.new_tokens)
                for batch in self._settings.batch_sizes
            ]
        return rounds

    @contextmanager
    def contestants(self, round_: Round) -> Iterator[list[Timed]]:
        """Yield the work of one round for each model.

        Raises:
            ModelError: A model cannot be compiled.
        """
        compiled = round_.execution == "compiled"
        with compiled_models(len(self._models)) if compiled else nullcontext():
            yield [self._contestant(round_, model, compiled) for model in self._models]

    def _contestant(self, round_: Round, model: Any, compiled: bool) -> Timed:
        ids = self._prompts[: round_.batch]
        if round_.workload == "first token":
            return FirstToken(model, ids)
        forward = compiled_forward(model, ids.device) if compiled else None
        if round_.workload == "prefill":
            return Prefill(model, ids, forward)
        return Decode(model, ids, self._settings.new_tokens, forward)
