"""Processes that need not import torch and transformers first, which takes seconds: forks of one that has them.

:func:`forked` runs a function in a fork of this process. :func:`fresh` runs a program in a fork of a process that has
imported torch, transformers and pytest, and nothing of ours: it finds the package where its ``path`` says, or nowhere.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, NoReturn


@dataclass(frozen=True)
class Ended:
    """How a process ended: its exit code, negative for a signal, and what it printed."""

    returncode: int
    stdout: str
    stderr: str


class Fork:
    """A process that was started and has not been waited for; forked from this one, or from the server's."""

    def __init__(self, pid: int, printed: Sequence[Path], poll: Callable[[int], int | None]) -> None:
        self.pid, self._printed, self._poll = pid, printed, poll
        self._code: int | None = None

    @property
    def runs(self) -> bool:
        """Whether the process has not ended."""
        if self._code is None:
            self._code = self._poll(self.pid)
        return self._code is None

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)

    def wait(self, seconds: float = 300) -> Ended:
        """Return how the process ended; kill it after ``seconds``."""
        deadline = time.monotonic() + seconds
        while self.runs:
            if time.monotonic() > deadline:
                self.kill()
            time.sleep(0.02)
        stdout, stderr = (path.read_text(encoding="utf-8", errors="replace") for path in self._printed)
        shutil.rmtree(self._printed[0].parent)
        assert self._code is not None
        return Ended(self._code, stdout, stderr)


def forked(action: Callable[[], object], **environment: str) -> Fork:
    """Start a function in a fork of this process, with these environment variables added."""
    printed = _places()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        os.environ.update(environment)
        _end(action, printed)
    return Fork(pid, printed, _code)


def fresh(
    code: str, *arguments: object, cwd: Path, path: Sequence[Path] = (), environment: dict[str, str] | None = None
) -> Fork:
    """Start a program in a process that has torch and transformers and nothing of ours.

    Args:
        code: The program, as ``python -c`` takes it.
        arguments: Its ``sys.argv[1:]``.
        cwd: The folder it runs in.
        path: Folders that it imports from first.
        environment: Environment variables added to ours. Those that transformers reads when it is imported are too
            late: the cache for code from checkpoints is the server's own.

    Returns:
        The process.
    """
    printed = _places()
    request = {
        "code": code,
        "arguments": list(map(str, arguments)),
        "cwd": str(cwd),
        "path": list(map(str, path)),
        "environment": environment or {},
        "printed": list(map(str, printed)),
    }
    pid = _asked("start", request)
    assert pid is not None
    return Fork(pid, printed, lambda pid: _asked("code", pid))


def _places() -> list[Path]:
    folder = Path(tempfile.mkdtemp(prefix="basis-sharing-fork-"))
    return [folder / "stdout", folder / "stderr"]


def _code(pid: int) -> int | None:
    """Return the exit code of a child, negative for a signal; None while it runs."""
    ended, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if ended else None


def _end(action: Callable[[], object], printed: Sequence[Path]) -> NoReturn:
    """Run a function in this process, which is a fork, with its output in two files, and end the process."""
    for number, path in enumerate(printed, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", encoding="utf-8", closefd=False) for number in (1, 2))
    code: Any = 0
    try:
        action()
    except SystemExit as stop:
        code = stop.code or 0
        if not isinstance(code, int):
            print(code, file=sys.stderr)
            code = 1
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


@cache
def _server() -> "subprocess.Popen[str]":
    """Return the process that the fresh ones are forked from; it ends when this one closes its input."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_MODULES_CACHE": tempfile.mkdtemp(prefix="basis-sharing-")}
    environment["PYTHONPATH"] = str(Path(__file__).parent)
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", "import forks; forks.serve()"]
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment)


def _asked(verb: str, what: Any) -> int | None:
    server = _server()
    assert server.stdin is not None
    assert server.stdout is not None
    print(json.dumps([verb, what]), file=server.stdin, flush=True)
    answer: int | None = json.loads(server.stdout.readline())
    return answer


def serve() -> None:
    """Import what takes long, then answer lines of the input: start a program, or tell whether and how it ended."""
    import pytest  # noqa: F401
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM  # noqa: F401

    assert "basis_sharing" not in sys.modules
    for line in sys.stdin:
        verb, what = json.loads(line)
        if verb == "code":
            print(json.dumps(_code(what)), flush=True)
            continue
        pid = os.fork()
        if pid == 0:
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            _end(partial(_program, what), [Path(path) for path in what["printed"]])
        print(pid, flush=True)


def _program(asked: dict[str, Any]) -> None:
    os.chdir(asked["cwd"])
    os.environ.update(asked["environment"])
    sys.path[:0] = asked["path"]
    sys.argv = ["-c", *asked["arguments"]]
    exec(compile(asked["code"], "<string>", "exec"), {"__name__": "__main__"})
