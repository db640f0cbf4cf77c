"""vLLM with one model, in a process of its own: reads a request and numbers of new tokens, answers with seconds."""

import sys
import time
from collections.abc import Callable, Iterable

from pydantic import BaseModel

ANSWER = "BENCHMARK "
"""Begins the lines of standard output that are answers; vLLM writes others."""


class Request(BaseModel):
    """What the process runs.

    Attributes:
        model: A folder or a hub id.
        dtype: Name of the dtype.
        device: ``"cpu"`` or ``"cuda"``.
        compiled: Whether vLLM compiles the model, as it does by default.
        prompts: Token ids of the prompts.
        new_tokens: Largest number of tokens after the first one.
        memory_share: Fraction of a graphics card's memory that this model may take.
    """

    model: str
    dtype: str
    device: str
    compiled: bool
    prompts: list[list[int]]
    new_tokens: int
    memory_share: float


class Step(BaseModel):
    """One generation.

    Attributes:
        batch: Number of prompts.
        tokens: Tokens generated for each of them.
    """

    batch: int
    tokens: int


class Answer(BaseModel):
    """What the process says: its version once it is ready, then the seconds of every generation, or an error.

    Attributes:
        version: Version of vLLM.
        first: Seconds until every prompt has its first token.
        others: Seconds from then until every prompt has its last token.
        error: Why the model cannot be run.
    """

    version: str = ""
    first: float = 0.0
    others: float = 0.0
    error: str | None = None


def serve(request: Request, lines: Iterable[str], answer: Callable[[Answer], None]) -> None:
    """Load the model, answer that it is ready, and answer every :class:`Step` of ``lines`` with its seconds."""
    import vllm
    from vllm.platforms import current_platform

    device = current_platform.device_type
    if device != request.device:
        built = f"is made for {device}" if device else "finds no device that it is made for"
        answer(Answer(error=f"the vLLM in this environment {built}, and {request.device} was asked for"))
        return
    batch, longest = len(request.prompts), len(request.prompts[0]) + 1 + request.new_tokens
    engine = vllm.LLM(
        request.model,
        dtype=request.dtype,
        max_model_len=longest,
        max_num_seqs=batch,
        enforce_eager=not request.compiled,
        max_num_batched_tokens=batch * longest,  # all prompts are read in one pass
        enable_prefix_caching=False,
        disable_log_stats=False,  # its statistics hold the times of the tokens
        skip_tokenizer_init=True,
        gpu_memory_utilization=request.memory_share,
    )
    answer(Answer(version=vllm.__version__))
    for line in lines:
        step = Step.model_validate_json(line)
        asked = [{"prompt_token_ids": prompt} for prompt in request.prompts[: step.batch]]
        sampling = vllm.SamplingParams(temperature=0, max_tokens=step.tokens, ignore_eos=True, detokenize=False)
        start = time.monotonic()  # the clock of vLLM's statistics
        metrics = [output.metrics for output in engine.generate(asked, sampling, use_tqdm=False)]
        first, last = (max(getattr(found, name) for found in metrics) for name in ("first_token_ts", "last_token_ts"))
        answer(Answer(first=first - start, others=last - first))


def main() -> None:
    """Serve the request in the first line of standard input."""

    def answer(found: Answer) -> None:
        print(ANSWER + found.model_dump_json(), flush=True)

    serve(Request.model_validate_json(sys.stdin.readline()), sys.stdin, answer)


if __name__ == "__main__":
    main()
