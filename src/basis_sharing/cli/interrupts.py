"""The message of an interrupted command that can be resumed."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import typer

from basis_sharing.run.work import work_beside


@contextmanager
def resumable(output: Path, work: Path | None) -> Iterator[None]:
    """After an interrupt within the context, print how to resume the run, and exit with code 130."""
    try:
        yield
    except KeyboardInterrupt:
        kept = work or work_beside(output)
        if not kept.is_dir():
            raise
        print(f"interrupted: the same command goes on with what is done, kept in {kept}.", file=sys.stderr)
        raise typer.Exit(130) from None
