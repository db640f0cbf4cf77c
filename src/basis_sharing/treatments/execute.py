"""Execution of a plan: every entry is solved by its treatment."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from basis_sharing.models.decoder import module
from basis_sharing.models.family import Compressible, Decoder
from basis_sharing.plans.plan import Plan
from basis_sharing.run.processes import Processes
from basis_sharing.run.progress import Progress, ProgressCallback, silent
from basis_sharing.treatments.base import TREATMENTS, Outcome, Treatment
from basis_sharing.treatments.outcome_files import read_outcome, write_outcome
from basis_sharing.weightings.base import Weighting


def execute(
    model: Any,
    decoder: Decoder,
    plan: Plan,
    weighting: Weighting,
    *,
    folder: Path | None = None,
    processes: Processes | None = None,
    treatments: Mapping[str, Treatment] = TREATMENTS,
    progress: ProgressCallback = silent,
) -> Iterator[Outcome]:
    """Yield the outcome of every entry of a plan, in the plan's order; the model is not changed.

    Args:
        model: The dense model.
        decoder: Its structure.
        plan: The plan.
        weighting: Weighting of errors.
        folder: Where the outcomes of this plan are kept; those of an interrupted run are reused.
        processes: The processes that divide the entries among them; each yields the outcomes of all.
        treatments: The treatments by kind.
        progress: Receives one event per entry that this process solves.

    Raises:
        NumericalError: A weight or a statistic contains NaN or infinity.
        OSError: The disk of ``folder`` is full or fails.
    """
    processes = processes or Processes()
    known = decoder.by_name
    scopes = [[known[name] for name in entry.members] for entry in plan.entries]
    owners = _owners(scopes, processes.count)
    own = [index for index, owner in enumerate(owners) if owner == processes.index]

    def keep(index: int, outcome: Outcome) -> Outcome:
        """Write an outcome to its file and return it as read from there; without a folder, return it unchanged."""
        if folder is None:
            return outcome
        write_outcome(outcome, _file(folder, index))
        return read_outcome(_file(folder, index)) or outcome

    def solve(position: int) -> Outcome:
        index = own[position]
        kept = None if folder is None else read_outcome(_file(folder, index))
        if kept is not None:
            return kept
        entry, scope = plan.entries[index], scopes[index]
        dtype = next(module(model, scope[0].name).parameters()).dtype
        treatment = treatments[entry.kind]
        outcome = treatment.solve(treatment.problem(weighting, model, scope), entry, dtype)
        outcome = keep(index, outcome)
        progress(Progress("factorizing", position + 1, len(own), "groups"))
        return outcome

    if processes.count == 1:
        yield from map(solve, range(len(own)))
        return
    # Solve all entries before exchanging any, so that no process waits for the decompositions of another one.
    solved = {index: solve(position) for position, index in enumerate(own)}
    for index, owner in enumerate(owners):
        outcome = processes.given_by(owner, solved.pop(index, None))
        yield outcome if owner == processes.index else keep(index, outcome)


def _file(folder: Path, index: int) -> Path:
    return folder / f"entry-{index:05d}.safetensors"


def _owners(scopes: Sequence[Sequence[Compressible]], processes: int) -> list[int]:
    """Return the process of every scope: in order of falling size, each is assigned to the least loaded process."""
    work = [scope[0].d_in ** 2 * (scope[0].d_in + sum(p.d_out for p in scope)) for scope in scopes]
    owners, loads = [0] * len(scopes), [0] * processes
    for index in sorted(range(len(scopes)), key=lambda i: -work[i]):
        owners[index] = loads.index(min(loads))
        loads[owners[index]] += work[index]
    return owners
