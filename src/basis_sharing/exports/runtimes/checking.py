"""The comparison of an export in its own runtime with the model in PyTorch."""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from basis_sharing.engines.base import ENGINES
from basis_sharing.engines.process import ANSWER, Answer, Request, Step
from basis_sharing.errors import ModelError
from basis_sharing.models.caches import cache_input, cache_of
from basis_sharing.results.export import ExportCheck
from basis_sharing.run.worker import Worker, WorkerError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PROMPTS = ("The capital of France is", "Once upon a time there was", "The three most important things are")
TOKENS = 16
EXACT = 1e-3
"""Largest difference of two logits of an export in fp32, as a fraction of the largest logit."""
NATS = {"float32": 1e-4, "float16": 1e-2, "int8": 0.05, "int4": 0.5}
"""Largest mean divergence of an export from the model, in nats, by the form of its weights."""


@dataclass(frozen=True)
class Followed:
    """A prompt and what the model in PyTorch makes of it.

    Attributes:
        prompt: Its token ids.
        tokens: The tokens that follow, chosen greedily.
        logits: Those of every one of them and of the next, shape ``[1 + TOKENS, words]``.
    """

    prompt: list[int]
    tokens: list[int]
    logits: torch.Tensor


@torch.no_grad()
def reference_of(model: "PreTrainedModel", tokenizer: Any) -> list[Followed]:
    """Return what a model makes of the prompts."""
    found = []
    for text in PROMPTS:
        prompt: list[int] = tokenizer(text)["input_ids"]
        ids = torch.tensor([prompt])
        cache: dict[str, Any] = {}
        tokens: list[int] = []
        logits: list[torch.Tensor] = []
        for _ in range(TOKENS + 1):
            output = model(input_ids=ids, use_cache=True, **cache)
            logits.append(output.logits[0, -1].float())
            tokens.append(int(logits[-1].argmax()))
            ids, cache = torch.tensor([tokens[-1:]]), cache_input(model, cache_of(output))
        found.append(Followed(prompt, tokens[:-1], torch.stack(logits)))
    return found


def check(folder: Path, engine: str, weights: str, reference: list[Followed]) -> ExportCheck:
    """Run an export in its runtime, in a process of its own, and compare it with the model.

    Args:
        folder: The export.
        engine: Its engine.
        weights: The form of its weights, which decides what may differ.
        reference: What the model makes of the prompts.

    Raises:
        ModelError: It cannot be run, or differs more than it should.
    """
    title = ENGINES[engine].title
    with tempfile.TemporaryDirectory() as scratch:
        worker = Worker("basis_sharing.engines.process", ANSWER, Answer, Path(scratch) / "log")
        try:
            ready = _ask(worker, Request(folder=folder, engine=engine, threads=torch.get_num_threads()))
            found = [_logits(worker, each, Path(scratch) / "logits.npy") for each in reference]
        except WorkerError as error:
            raise ModelError(f"the export ends {title} ({error}), so nothing was written.") from None
        finally:
            worker.stop()
    result = _compared(reference, found, without_torch=not ready.torch)
    expected = torch.stack([each.logits for each in reference])
    bound = EXACT * float(expected.abs().max())
    exact = weights == "float32"
    if result.nats > NATS[weights] or (exact and (result.largest_difference > bound or result.same < result.tokens)):
        raise ModelError(
            f"in {title} the export differs too much from the model: {result.same} of {result.tokens} tokens are the "
            f"same, logits differ by {result.largest_difference:.2g}, and {result.nats:.2g} nats are lost, of which "
            f"{NATS[weights]} are allowed with weights in {weights}. Nothing was written: "
            + (
                "please report this, unless an export of the original differs as well."
                if exact
                else "choose --weights with more bits."
            )
        )
    return result


def _ask(worker: Worker[Answer], line: Request | Step) -> Answer:
    answer = worker.ask(line)
    if answer.error is not None:
        raise ModelError(f"{answer.error}, so nothing was written.")
    return answer


def _logits(worker: Worker[Answer], each: Followed, into: Path) -> torch.Tensor:
    """Return the logits of the export for a prompt and the tokens after it, shape ``[1 + TOKENS, words]``."""
    import numpy as np

    _ask(worker, Step(what="follow", prompts=[each.prompt], tokens=[each.tokens], into=into))
    return torch.from_numpy(np.load(into)[:, 0]).float()


def _compared(reference: list[Followed], found: list[torch.Tensor], without_torch: bool) -> ExportCheck:
    expected, actual = torch.cat([each.logits for each in reference]), torch.cat(found)
    if actual.shape != expected.shape:
        raise ModelError(f"the export gives {actual.shape[-1]} logits instead of {expected.shape[-1]}.")
    differences = (actual - expected).abs()
    # Tokens whose logits are closer than the differences may change places.
    chosen, own = expected.argmax(-1, keepdim=True), actual.argmax(-1, keepdim=True)
    close = (expected.gather(1, chosen) - expected.gather(1, own))[:, 0] <= 2 * differences.amax(-1).clamp(max=1e-3)
    p, q = expected.log_softmax(-1), actual.log_softmax(-1)
    return ExportCheck(
        prompts=len(reference),
        tokens=len(expected),
        same=int(close.sum()),
        largest_difference=float(differences.max()) if torch.isfinite(actual).all() else float("inf"),
        nats=float((p.exp() * (p - q)).sum(-1).mean()) if torch.isfinite(actual).all() else float("inf"),
        without_torch=without_torch,
    )
