"""The stages of a run that turn its model into a compressed checkpoint."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from basis_sharing.checkpoint.writer import write_model
from basis_sharing.run.run import Run
from basis_sharing.run.stages import Needs, Shapes
from basis_sharing.runtime.surgery import declare_compressed
from basis_sharing.treatments.stage import Execute, Planned


class Declare:
    """Declare the model as compressed, so that it is saved in the compressed format.

    Args:
        execute: The stage that carries out the plan.
        planned: The stage that makes the plan.
        provenance: How the checkpoint was made; the ratio of the plan is added.
    """

    def __init__(self, execute: Execute, planned: Planned, provenance: Mapping[str, Any]) -> None:
        self._execute, self._planned, self._provenance = execute, planned, provenance

    def needs(self, shapes: Shapes) -> Iterable[Needs]:
        """Return nothing: the stage needs no memory or time."""
        return ()

    def run(self, run: Run) -> None:
        """Write the entries into the model's configuration."""
        provenance = {**self._provenance, "ratio": self._planned.plan.ratio}
        declare_compressed(run.model, [done.entry for done in self._execute.executed], provenance)


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
            write_model(self._folder, run.model, run.tokenizer, max_shard_size=run.machine.shard_bytes)
