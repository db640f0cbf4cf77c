"""The factors of one group as a file, for a run that goes on where another was interrupted.

Matrices lie in the file as the modules of a compressed model hold them, so that a model can use them where they are:
what is read takes no memory that the system could not take back.
"""

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from basis_sharing.run.durable import write_whole
from basis_sharing.runtime.surgery import GroupFactors
from basis_sharing.treatments.factors.outcome import GroupOutcome


def write_outcome(outcome: GroupOutcome, path: Path) -> None:
    """Write the outcome of a group.

    Raises:
        OSError: The disk is full or fails.
    """
    factors = outcome.factors
    tensors = {"basis": factors.basis.T.contiguous()}
    for index, C in enumerate(factors.coefficients):
        tensors[f"coefficients/{index}"] = C.T.contiguous()
    if factors.pivots is not None:
        tensors["pivots"] = factors.pivots
    about = {
        "members": factors.members,
        "loss": outcome.loss,
        "relative_loss": outcome.relative_loss,
        "ridge": outcome.ridge,
        "not_pivoted": outcome.not_pivoted,
    }
    write_whole(path, lambda partial: save_file(tensors, partial, {"outcome": json.dumps(about)}))


def read_outcome(path: Path) -> GroupOutcome | None:
    """Read the outcome of a group; None where there is none, or the file is damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads(file.metadata()["outcome"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (FileNotFoundError, SafetensorError):
        return None
    members = tuple(about.pop("members"))
    coefficients = tuple(tensors[f"coefficients/{index}"].T for index in range(len(members)))
    return GroupOutcome(GroupFactors(members, tensors["basis"].T, coefficients, tensors.get("pivots")), **about)
