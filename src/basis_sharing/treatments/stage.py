"""The stage of a run that carries out its plan."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from basis_sharing.plans.plan import Plan
from basis_sharing.recipe.planning import Planning
from basis_sharing.run.files import output_errors
from basis_sharing.run.run import Run
from basis_sharing.run.stages import Needs, Shapes
from basis_sharing.runtime.format_basis_sharing import Entry
from basis_sharing.treatments.base import TREATMENTS
from basis_sharing.treatments.execute import execute
from basis_sharing.weightings.stage import Collect


class Planned(Protocol):
    """A stage that makes a plan."""

    @property
    def plan(self) -> Plan:
        """The plan."""
        ...


@dataclass(frozen=True)
class Executed:
    """What became of one entry.

    Attributes:
        entry: The entry as it was carried out; its loss is that of what was installed, where the method predicts any.
        relative_loss: Share of what would be lost if nothing were kept.
        ridge: Relative ridge its second moment needed, 0 for none.
    """

    entry: Entry
    relative_loss: float
    ridge: float


class Execute:
    """Solve every entry of the plan, and put it into the model.

    Args:
        planned: The stage that makes the plan.
        collect: The stage that collects the statistics, which are given up afterwards.
        planning: What projections may be turned into.
        in_nats: Whether losses are in nats per token, so that entries get them.
        about: Says what else the parts that are kept for a later run depend on.

    Attributes:
        executed: What became of every entry.
        folder: Where finished parts are kept until the run ends; None: nowhere.
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
        """Say what the decompositions need, and the parts that are kept of them."""
        kind = self._collect.kind
        treatments = [TREATMENTS[name] for name in self._planning.treatments]
        seconds = max(treatment.solving_seconds(shapes, self._planning) for treatment in treatments)
        memory = shapes.solving_memory(whitened=kind.whitens, outputs=kind.in_nats)
        kept = sum(p.d_in * p.d_out for p in shapes.decoder.projections) * shapes.dtype.itemsize
        yield Needs("factorization", seconds, memory, kept)

    def run(self, run: Run) -> None:
        """Carry the plan out, and give up the statistics."""
        plan, weighting, text = self._planned.plan, self._collect.weighting, self._collect.text
        measured = text.about(run.collected) if text is not None else {}
        entries = [entry.to_dict() for entry in plan.entries]
        about = {**measured, **self._about(), "weighting": weighting.name, "entries": entries}
        self.folder = run.parts_folder("parts", about)
        self.executed = []
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
    """Turn the failures of the disk that a folder is on into one sentence; without a folder there are none."""
    return nullcontext() if folder is None else output_errors(folder)
