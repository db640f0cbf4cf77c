"""The stage of a run that executes its plan."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from basis_sharing.plans.plan import Plan
from basis_sharing.recipe.planning import Planning
from basis_sharing.run.files import output_errors
from basis_sharing.run.run import Run
from basis_sharing.run.stages import Needs, Shapes
from basis_sharing.runtime.format_basis_sharing import Entry
from basis_sharing.runtime.surgery import declare_compressed
from basis_sharing.treatments.base import TREATMENTS
from basis_sharing.treatments.bits.grids import grid_note
from basis_sharing.treatments.embeddings import RoundEmbeddings
from basis_sharing.treatments.execute import execute
from basis_sharing.treatments.experts.visits import visits_note
from basis_sharing.weightings.stage import Collect


class Planned(Protocol):
    """A stage that makes a plan."""

    @property
    def plan(self) -> Plan:
        """The plan."""
        ...


@dataclass(frozen=True)
class Executed:
    """The record of one executed entry.

    Attributes:
        entry: The entry as carried out; its loss is that of the installed tensors, None if not in nats per token.
        relative_loss: The loss as a fraction of the loss at rank 0.
        ridge: Relative ridge that was added to the second moment, 0 for none.
    """

    entry: Entry
    relative_loss: float
    ridge: float


class Execute:
    """Solve every entry of the plan, and install the outcome in the model.

    Args:
        planned: The stage that makes the plan.
        collect: The stage that collects the statistics, which are released afterwards.
        planning: The settings that name the possible treatments.
        in_nats: Whether losses are in nats per token and are stored in the entries.
        about: Returns further settings that the outcomes cached for resuming depend on.

    Attributes:
        executed: The records of all entries.
        folder: Where the outcomes are kept until the run ends; None: they are not kept.
    """

    executed: list[Executed]
    folder: Path | None

    def __init__(
        self,
        planned: Planned,
        collect: Collect,
        planning: Planning,
        *,
        in_nats: bool,
        about: Callable[[], Mapping[str, object]] = dict,
    ) -> None:
        self._planned, self._collect, self._planning = planned, collect, planning
        self._in_nats, self._about = in_nats, about

    def needs(self, shapes: Shapes) -> Iterable[Needs]:
        """Yield the time, memory and disk space that the decompositions and the cached outcomes need."""
        kind = self._collect.kind
        treatments = [TREATMENTS[name] for name in self._planning.offered_treatments]
        seconds = max(treatment.solving_seconds(shapes, self._planning) for treatment in treatments)
        memory = shapes.solving_memory(whitened=kind.whitens, outputs=kind.in_nats)
        kept = sum(p.d_in * p.d_out for p in shapes.decoder.parts) * shapes.dtype.itemsize
        yield Needs("factorization", seconds, memory, kept)

    def run(self, run: Run) -> None:
        """Execute the plan, and release the statistics."""
        plan, weighting, text = self._planned.plan, self._collect.weighting, self._collect.text
        measured = text.about(run.collected) if text is not None else {}
        entries = [entry.to_dict() for entry in plan.entries]
        about = {**measured, **self._about(), "weighting": weighting.name, "entries": entries}
        self.folder = run.parts_folder("parts", about)
        self.executed = []
        if any(entry.tensors for entry in plan.entries):
            run.notes.extend(grid_note(run.model, run.decoder))
        run.notes.extend(visits_note(weighting, run.decoder, plan.entries))
        with errors_of(self.folder):
            outcomes = execute(
                run.model,
                run.decoder,
                plan,
                weighting,
                folder=self.folder,
                processes=run.processes,
                progress=run.progress,
            )
            for outcome in outcomes:
                TREATMENTS[outcome.entry.kind].install(run.model, outcome)
                entry = replace(outcome.entry, loss=outcome.loss if self._in_nats else None)
                self.executed.append(Executed(entry, outcome.relative_loss, outcome.ridge))
                run.notes.extend(outcome.notes)
        self._collect.release()


def errors_of(folder: Path | None) -> AbstractContextManager[None]:
    """Return a context that turns disk errors in a folder into an OutputError; without a folder it does nothing."""
    return nullcontext() if folder is None else output_errors(folder)


def _predicted_speed(plan: Plan) -> dict[str, Any]:
    """Return the predicted speed of a plan for the provenance of a checkpoint; nothing if it was not predicted."""
    size = {"prefill": "tokens", "decode": "batch"}
    speeds = () if plan.prediction is None else plan.prediction.speeds
    found = {s.phase: {size[s.phase]: getattr(s, size[s.phase]), "speed": round(s.speed, 4)} for s in speeds}
    return {"predicted_speed": found} if found else {}


def replaced_entries(executed: Sequence[Executed], entries: Mapping[str, Entry]) -> list[Executed]:
    """Return the records with other entries, given by their owners."""
    return [replace(record, entry=entries[record.entry.owner]) for record in executed]


class Declare:
    """Declare the model as compressed, so that it is saved in the compressed format.

    Args:
        execute: The stage that carries out the plan.
        planned: The stage that makes the plan.
        outside: The stage that rounds what is outside of the projections.
        provenance: How the checkpoint was made; the ratio of the plan is added.
    """

    def __init__(
        self, execute: Execute, planned: Planned, outside: RoundEmbeddings, provenance: Mapping[str, Any]
    ) -> None:
        self._execute, self._planned, self._outside, self._provenance = execute, planned, outside, provenance

    def needs(self, shapes: Shapes) -> Iterable[Needs]:
        """Return nothing: the stage needs no memory or time."""
        return ()

    def run(self, run: Run) -> None:
        """Write the entries into the model's configuration."""
        plan = self._planned.plan
        provenance = {**self._provenance, "ratio": plan.ratio, **_predicted_speed(plan)}
        entries = [*(done.entry for done in self._execute.executed), *self._outside.entries]
        declare_compressed(run.model, entries, provenance)
