"""The output of the measuring verbs: a file, and a table or JSON on the terminal."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from basis_sharing.cli.console import out
from basis_sharing.reports.terminal import printable
from basis_sharing.results.base import Result
from basis_sharing.run.files import write_file

_R = TypeVar("_R", bound=Result)


def deliver(result: _R, table: Callable[[_R], Iterable[Any]], output: Path | None, as_json: bool) -> None:
    """Write a result to a file if one is given, and print it as a table or as JSON.

    Raises:
        OutputError: The file cannot be written.
    """
    if output is not None:
        write_file(output, result.write)
    if as_json:
        print(result.model_dump_json(indent=2))
        return
    out.print(printable(*table(result)))
    if output is not None:
        out.print(f"\n  written to {output}\n", highlight=False, markup=False)
