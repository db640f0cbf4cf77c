"""How fast: factorization against a wide SVD, and calibration in bf16 against fp32, on SmolLM2-135M.

``python benchmarks/speed.py [--windows N] [--evaluation-windows N]`` (about ten minutes). Both sides of every
comparison run in this one process, on the same groups and the same windows.
"""

import argparse
import copy
import time
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from statistics import median
from typing import Any, TypeVar

import torch

from basis_sharing.calibration.moments import MomentStore
from basis_sharing.evaluation.perplexity import measure
from basis_sharing.models.decoder import weight
from basis_sharing.planning.published import published_plan
from basis_sharing.plans.plan import Plan
from basis_sharing.recipe.model import DtypeName
from basis_sharing.recipe.planning import Planning
from basis_sharing.run.run import Run
from basis_sharing.runtime.entries_basis_sharing import Factors
from basis_sharing.treatments.base import Outcome, install
from basis_sharing.treatments.execute import execute
from basis_sharing.weightings.base import Weighting
from basis_sharing.weightings.second_moment import SecondMoment
from basis_sharing.weightings.stage import Collect
from common import CALIBRATION, TEST_TEXT, calibration_on, evaluation_on, machine, real_model, save

DTYPES: tuple[DtypeName, ...] = ("float32", "bfloat16")
T = TypeVar("T")


def seconds(action: Callable[[], T]) -> tuple[float, T]:
    """Return how long an action takes, and what it returns."""
    start = time.perf_counter()
    value = action()
    return time.perf_counter() - start, value


def factorized(run: Run, plan: Plan, weighting: Weighting) -> list[Outcome]:
    """Factorize every group as the program does."""
    return list(execute(run.model, run.decoder, plan, weighting))


def wide_svd(run: Run, plan: Plan, moments: MomentStore) -> float:
    """Factorize every group as the authors do: Cholesky, inverse, SVD of the whole S W; return the lost energy."""
    lost = 0.0
    for group in plan.entries:
        assert isinstance(group, Factors)
        members = [run.decoder.projection_by_name[name] for name in group.members]
        gram = moments.total([(p.block, p.input) for p in members]).gram
        assert gram is not None
        S = torch.linalg.cholesky(gram.double()).T
        inverse = torch.linalg.inv(S)
        W = torch.cat([weight(run.model, p).double() for p in members], dim=1)
        U, sigma, Vt = torch.linalg.svd(S @ W, full_matrices=False)
        basis, coefficients = inverse @ (U[:, : group.rank] * sigma[: group.rank]), Vt[: group.rank]
        assert basis.shape[1] == coefficients.shape[0]
        lost += (sigma[group.rank :].square().sum() / sigma.square().sum()).item()
    return lost


def calibrations(run: Run, plan: Plan, stages: dict[DtypeName, Collect], evaluation_windows: int) -> dict[str, Any]:
    """Calibrate in every dtype; return the seconds, and what the factors are worth."""
    found: dict[str, Any] = {}
    text = evaluation_on(run, TEST_TEXT, evaluation_windows)
    for dtype, collect in stages.items():
        took, _ = seconds(partial(collect.run, run))
        compressed, outcomes = copy.deepcopy(run.model), factorized(run, plan, collect.weighting)
        for outcome in outcomes:
            install(compressed, outcome)
        found[dtype] = {
            "seconds": took,
            "perplexity": measure(compressed, text).perplexity,
            "ridges": sum(outcome.ridge > 0 for outcome in outcomes),
        }
        print(dtype, found[dtype], flush=True)
    fp32, bf16 = found["float32"], found["bfloat16"]
    found["speedup"] = fp32["seconds"] / bf16["seconds"]
    found["perplexity_difference"] = bf16["perplexity"] / fp32["perplexity"] - 1
    return found


def factorizations(run: Run, plan: Plan, moments: MomentStore | None) -> dict[str, Any]:
    """Time our factorization and the authors', three times each, in turns."""
    assert moments is not None
    ours, theirs = [], []
    for _ in range(3):
        fresh = SecondMoment(moments=moments)  # which remembers no whitening
        took, outcomes = seconds(partial(factorized, run, plan, fresh))
        ours.append(took)
        took, lost = seconds(partial(wide_svd, run, plan, moments))
        theirs.append(took)
    return {
        "groups": len(plan.entries),
        "seconds": median(ours),
        "wide_svd_seconds": median(theirs),
        "speedup": median(theirs) / median(ours),
        "lost_energy": sum(outcome.relative_loss for outcome in outcomes),
        "wide_svd_lost_energy": lost,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--evaluation-windows", type=int, default=8)
    options = parser.parse_args()
    with real_model() as run:
        plan = published_plan(Planning(method="basis-sharing"), Fraction(1, 5), run.decoder)
        stages = {
            dtype: Collect(SecondMoment, calibration_on(run, CALIBRATION, options.windows, dtype)) for dtype in DTYPES
        }
        result = {
            "machine": machine(),
            "windows": options.windows,
            "calibration": calibrations(run, plan, stages, options.evaluation_windows),
            "factorization": factorizations(run, plan, stages["float32"].weighting.moments),
        }
    print(result)
    save("speed", result)


if __name__ == "__main__":
    main()
