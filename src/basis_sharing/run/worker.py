"""Processes that answer line by line: a request first, then one step after the other."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Generic, TypeVar

from pydantic import BaseModel

T = TypeVar("T", bound=BaseModel)


class WorkerError(Exception):
    """The process of a worker ended; the message is the last it said."""


class Worker(Generic[T]):
    """A module that is run as a process of its own, and answers every line that it is sent.

    Args:
        module: The module; it reads lines of standard input, and writes answers to standard output.
        mark: Begins the lines that are answers.
        answers: The class of the answers.
        log: File for what the process writes to standard error.
        environment: Environment variables of the process, beside those of this one.
    """

    def __init__(
        self, module: str, mark: str, answers: type[T], log: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        self._mark, self._answers, self._log = mark, answers, log
        with log.open("wb") as file:
            self._process = subprocess.Popen(
                [sys.executable, "-m", module],
                env={**os.environ, **(environment or {})},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                text=True,
            )

    def ask(self, line: BaseModel) -> T:
        """Send a request or a step, and return the answer.

        Raises:
            WorkerError: The process has ended without one.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        if self._process.poll() is None:
            self._process.stdin.write(f"{line.model_dump_json()}\n")
            self._process.stdin.flush()
        for written in self._process.stdout:
            if written.startswith(self._mark):
                return self._answers.model_validate_json(written.removeprefix(self._mark))
        raise WorkerError(self._reason())

    def stop(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()

    def _reason(self) -> str:
        lines = [line.strip() for line in self._log.read_text(encoding="utf-8", errors="replace").splitlines()]
        errors = [line for line in lines if "Error" in line.split(":")[0] and " " not in line.split(":")[0]]
        return (errors or [line for line in lines if line] or ["its process ended"])[-1].rstrip(".")
