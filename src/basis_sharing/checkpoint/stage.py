"""The stages of a run that turn its model into a compressed checkpoint."""

from collections.abc import Iterable
from pathlib import Path

from basis_sharing.checkpoint.writer import write_model
from basis_sharing.models.source import local_folder
from basis_sharing.run.run import Run
from basis_sharing.run.stages import Needs, Shapes


class Write:
    """Write the model and its tokenizer.

    Args:
        folder: An empty folder; None: nothing is written.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder

    def needs(self, shapes: Shapes) -> Iterable[Needs]:
        """Return nothing: weights are written without a copy."""
        return ()

    def run(self, run: Run) -> None:
        """Write the model in shards whose size fits the memory of the run."""
        if self._folder is not None:
            original = None if run.source is None else local_folder(run.source)
            size = run.machine.shard_bytes
            write_model(self._folder, run.model, run.tokenizer, original=original, max_shard_size=size)
