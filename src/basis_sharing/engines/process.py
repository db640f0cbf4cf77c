"""An exported model in its runtime, in a process of its own: reads a request and steps, answers each of them.

The process imports no torch unless the runtime does.
"""

import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal

from pydantic import BaseModel

from basis_sharing.engines.base import ENGINES, Decoder, Engine

ANSWER = "EXPORTED "
"""Begins the lines of standard output that are answers."""
_STATUS = Path("/proc/self/status")


class Request(BaseModel):
    """What the process runs.

    Attributes:
        folder: The exported folder.
        engine: Name of the engine.
        threads: Threads of the runtime.
    """

    folder: Path
    engine: str
    threads: int


class Step(BaseModel):
    """One task.

    Attributes:
        what: ``"follow"``: read prompts, then given tokens one by one, and write all logits to a file. ``"time"``:
            read prompts, choose tokens greedily, and say the seconds.
        prompts: Token ids of the prompts, all of one length.
        tokens: To follow: the tokens after each prompt.
        new_tokens: To time: number of tokens after the first one.
        into: To follow: the ``.npy`` file for logits of shape ``[1 + tokens, batch, words]``.
    """

    what: Literal["follow", "time"]
    prompts: list[list[int]]
    tokens: list[list[int]] = []
    new_tokens: int = 0
    into: Path | None = None


class Answer(BaseModel):
    """What the process says: that it is ready, then the result of every step, or an error.

    Attributes:
        torch: Whether torch has been imported.
        libraries: Bytes of the process with the runtime imported.
        peak: Largest bytes of the process so far; 0 where the platform does not say.
        first: Seconds until every prompt has its first token.
        others: Seconds from then until every prompt has its last token.
        error: Why the model cannot be run.
    """

    torch: bool = False
    libraries: int = 0
    peak: int = 0
    first: float = 0.0
    others: float = 0.0
    error: str | None = None


def serve(request: Request, lines: Iterable[str], answer: Callable[[Answer], None]) -> None:
    """Load the export, answer that it is ready, and answer every :class:`Step` of ``lines``."""
    engine = ENGINES[request.engine]
    __import__(engine.module)
    libraries = _peak()
    try:
        decoder = _start(engine, request)
    except Exception as error:  # of whatever kind the runtime raises
        answer(Answer(error=f"{engine.title} cannot load it: {_sentence(error)}"))
        return
    answer(Answer(torch="torch" in sys.modules, libraries=libraries, peak=_peak()))
    for line in lines:
        step = Step.model_validate_json(line)
        try:
            answer(_follow(decoder, step) if step.what == "follow" else _time(decoder, step))
        except Exception as error:  # as above
            answer(Answer(error=f"{engine.title} cannot run it: {_sentence(error)}"))


def _start(engine: Engine, request: Request) -> Decoder:
    return engine.start(request.folder, request.threads)


def _follow(decoder: Decoder, step: Step) -> Answer:
    import numpy as np

    assert step.into is not None
    decoder.restart()
    read = [np.array(step.prompts), *(np.array(column)[:, None] for column in zip(*step.tokens, strict=True))]
    np.save(step.into, np.stack([decoder.step(ids) for ids in read]))
    return Answer(peak=_peak())


def _time(decoder: Decoder, step: Step) -> Answer:
    import numpy as np

    decoder.restart()
    ids = np.array(step.prompts)
    start = time.perf_counter()
    chosen = decoder.step(ids).argmax(-1)
    first = time.perf_counter()
    for _ in range(step.new_tokens):
        chosen = decoder.step(chosen[:, None]).argmax(-1)
    return Answer(first=first - start, others=time.perf_counter() - first, peak=_peak())


def _peak() -> int:
    """Return the largest bytes that this process has held; 0 where the platform does not say."""
    if not _STATUS.is_file():
        return 0
    line = next(line for line in _STATUS.read_text(encoding="ascii").splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def _sentence(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__).rstrip(".")


def main() -> None:
    """Serve the request in the first line of standard input."""

    def answer(found: Answer) -> None:
        print(ANSWER + found.model_dump_json(), flush=True)

    serve(Request.model_validate_json(sys.stdin.readline()), sys.stdin, answer)


if __name__ == "__main__":
    main()
