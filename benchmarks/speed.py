"""How fast: factorization against a wide SVD, and calibration in bf16 against fp32, on SmolLM2-135M.

``python benchmarks/speed.py [--windows N] [--evaluation-windows N]`` (about ten minutes). Both sides of every
comparison run in this one process, on the same groups and the same windows.
"""

import argparse
import copy
import time
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import torch

from basis_sharing.calibration.forward import sweep
from basis_sharing.calibration.moments import MomentStore, Statistics
from basis_sharing.evaluation.perplexity import measure
from basis_sharing.models.decoder import weight
from basis_sharing.models.family import Decoder
from basis_sharing.plans.plan import Plan
from basis_sharing.recipe.presets import Weighting
from basis_sharing.runtime.surgery import install_factors
from basis_sharing.treatments.factors.outcome import GroupOutcome
from basis_sharing.treatments.factors.solve import factorize
from basis_sharing.treatments.factors.uniform import uniform_plan
from basis_sharing.weightings.weighting import Weigher
from common import load_setting, machine, save


def seconds(action: Callable[[], Any]) -> tuple[float, Any]:
    """Return how long an action takes, and what it returns."""
    start = time.perf_counter()
    value = action()
    return time.perf_counter() - start, value


def wide_svd(model: Any, decoder: Decoder, plan: Plan, moments: MomentStore) -> float:
    """Factorize every group as the authors do: Cholesky, inverse, SVD of the whole S W; return the lost energy."""
    known = {p.name: p for p in decoder.projections}
    lost = 0.0
    for group in plan.groups:
        members = [known[name] for name in group.members]
        gram = moments.total([(p.block, p.input) for p in members]).gram
        assert gram is not None
        S = torch.linalg.cholesky(gram.double()).T
        inverse = torch.linalg.inv(S)
        W = torch.cat([weight(model, p).double() for p in members], dim=1)
        U, sigma, Vt = torch.linalg.svd(S @ W, full_matrices=False)
        basis, coefficients = inverse @ (U[:, : group.rank] * sigma[: group.rank]), Vt[: group.rank]
        assert basis.shape[1] == coefficients.shape[0]
        lost += (sigma[group.rank :].square().sum() / sigma.square().sum()).item()
    return lost


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--evaluation-windows", type=int, default=8)
    options = parser.parse_args()
    setting = load_setting(options.windows, options.evaluation_windows)
    model, decoder, ids, text = setting.model, setting.decoder, setting.input_ids, setting.text
    plan = uniform_plan(
        decoder,
        method="basis-sharing",
        ratio=Fraction(1, 5),
        group_size=2,
        shared_roles=decoder.family.shared_roles,
    )

    result: dict[str, Any] = {"machine": machine(), "windows": options.windows, "calibration": {}}
    stores: dict[torch.dtype, MomentStore] = {}
    for dtype in (torch.float32, torch.bfloat16):
        store = MomentStore()

        def calibrate(dtype: torch.dtype = dtype, store: MomentStore = store) -> None:
            for block, moments in sweep(model, decoder, ids, Statistics(gram=True), dtype=dtype):
                store.put(block, moments)

        took, _ = seconds(calibrate)
        stores[dtype] = store
        compressed = copy.deepcopy(model)
        weigher = Weigher(Weighting.SECOND_MOMENT, moments=store)
        outcomes = list(factorize(model, decoder, plan, weigher))
        for outcome in outcomes:
            install_factors(compressed, outcome.factors)
        name = str(dtype).removeprefix("torch.")
        result["calibration"][name] = {
            "seconds": took,
            "perplexity": measure(compressed, text).perplexity,
            "ridges": sum(outcome.ridge > 0 for outcome in outcomes),
        }
        print(name, result["calibration"][name], flush=True)
    fp32, bf16 = result["calibration"]["float32"], result["calibration"]["bfloat16"]
    result["calibration"]["speedup"] = fp32["seconds"] / bf16["seconds"]
    result["calibration"]["perplexity_difference"] = bf16["perplexity"] / fp32["perplexity"] - 1

    moments = stores[torch.float32]
    ours, theirs = [], []
    for _ in range(3):

        def factorize_all() -> list[GroupOutcome]:
            return list(factorize(model, decoder, plan, Weigher(Weighting.SECOND_MOMENT, moments=moments)))

        took, outcomes = seconds(factorize_all)
        ours.append(took)
        took, lost = seconds(lambda: wide_svd(model, decoder, plan, moments))
        theirs.append(took)
    result["factorization"] = {
        "groups": len(plan.groups),
        "seconds": sorted(ours)[1],
        "wide_svd_seconds": sorted(theirs)[1],
        "speedup": sorted(theirs)[1] / sorted(ours)[1],
        "lost_energy": sum(outcome.relative_loss for outcome in outcomes),
        "wide_svd_lost_energy": lost,
    }
    print(result)
    save("speed", result)


if __name__ == "__main__":
    main()
