"""Carry out a plan: the outcome of every entry, solved by its treatment."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from basis_sharing.models.decoder import weight
from basis_sharing.models.family import Decoder, Projection
from basis_sharing.plans.plan import Plan
from basis_sharing.run.processes import Processes
from basis_sharing.run.progress import Progress, ProgressCallback, silent
from basis_sharing.treatments.base import TREATMENTS, Outcome, Treatment
from basis_sharing.treatments.files import read_outcome, write_outcome
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
    """Yield the outcome of every entry of a plan; the model is not changed.

    Args:
        model: The dense model.
        decoder: Its structure.
        plan: What to make.
        weighting: What errors are weighted with.
        folder: Where finished entries are kept for this plan; those that an interrupted run has left there are taken.
        processes: The processes that divide the entries among them; each yields all of them.
        treatments: The treatments by kind.
        progress: Receives one event per entry that is solved.

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
        """Return an outcome as it lies in its file, where there is one."""
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
        dtype = weight(model, scope[0]).dtype
        outcome = treatments[entry.kind].solve(weighting.problem(model, scope), entry, dtype)
        outcome = keep(index, outcome)
        progress(Progress("factorizing", position + 1, len(own), "groups"))
        return outcome

    if processes.count == 1:
        yield from map(solve, range(len(own)))
        return
    # All are solved before the first is exchanged: nobody waits for a decomposition of another process.
    solved = {index: solve(position) for position, index in enumerate(own)}
    for index, owner in enumerate(owners):
        outcome = processes.given_by(owner, solved.pop(index, None))
        yield outcome if owner == processes.index else keep(index, outcome)


def _file(folder: Path, index: int) -> Path:
    return folder / f"entry-{index:05d}.safetensors"


def _owners(scopes: Sequence[Sequence[Projection]], processes: int) -> list[int]:
    """Divide scopes among processes: the next largest goes to the one that has the least to do."""
    work = [scope[0].d_in ** 2 * (scope[0].d_in + sum(p.d_out for p in scope)) for scope in scopes]
    owners, loads = [0] * len(scopes), [0] * processes
    for index in sorted(range(len(scopes)), key=lambda i: -work[i]):
        owners[index] = loads.index(min(loads))
        loads[owners[index]] += work[index]
    return owners
