"""How faithful: the paper's method against the authors' own code, on SmolLM2-135M, in fp32.

``python benchmarks/faithful.py`` (an hour and a half on two cores; ``--rows TEXT`` runs the rows whose name contains
TEXT). Calibration is on the 64 given token windows; perplexity is that of the first 40 windows of 2048 tokens of
``wiki.test.raw``. The figures of the authors' code are those of the Foundation issue; it has none for the rows without
one.
"""

import argparse
import copy
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from rich.progress import track

from basis_sharing.calibration.forward import sweep
from basis_sharing.calibration.moments import MomentStore, Statistics
from basis_sharing.evaluation.perplexity import measure
from basis_sharing.models.decoder import weight
from basis_sharing.models.families import family_of
from basis_sharing.models.family import Decoder
from basis_sharing.recipe.presets import Weighting
from basis_sharing.recipe.recipe import Form
from basis_sharing.runtime.surgery import install_factors, projection_parameters
from basis_sharing.treatments.factors.solve import factorize, refit
from basis_sharing.treatments.factors.uniform import uniform_plan
from basis_sharing.weightings.weighting import Weigher
from common import load_setting, machine, read, save


@dataclass(frozen=True)
class Row:
    """One setting, and what the authors' code gives for it where that is known."""

    name: str
    ratio: Fraction
    group_size: int
    table: str = "llama"
    refit: bool = False
    form: Form = "plain"
    dtype: torch.dtype = torch.float32
    parameters: int | None = None
    perplexity: float | None = None


FIFTH, TWO_FIFTHS = Fraction(1, 5), Fraction(2, 5)
ROWS = (
    Row("basis-sharing, 20 %", FIFTH, 2, parameters=84_893_760, perplexity=72.730),
    Row("svd-llm, 20 %", FIFTH, 1, parameters=84_873_600, perplexity=65.915),
    Row("basis-sharing, Mistral share table, 20 %", FIFTH, 2, table="mistral"),
    Row("basis-sharing without refit, 40 %", TWO_FIFTHS, 2),
    Row("svd-llm, 40 %", TWO_FIFTHS, 1),
    Row("basis-sharing, 40 %", TWO_FIFTHS, 2, refit=True),
    Row("basis-sharing, 20 %, calibrated in bf16", FIFTH, 2, dtype=torch.bfloat16),
    Row("basis-sharing, 20 %, calibrated in bf16, pivoted", FIFTH, 2, dtype=torch.bfloat16, form="pivoted"),
    Row("svd-llm, 20 %, calibrated in bf16, pivoted", FIFTH, 1, dtype=torch.bfloat16, form="pivoted"),
)


def moments_of(model: Any, decoder: Decoder, ids: torch.Tensor, dtype: torch.dtype) -> MomentStore:
    """Return the second moments of all inputs."""
    store = MomentStore()
    blocks = sweep(model, decoder, ids, Statistics(gram=True), dtype=dtype)
    for block, moments in track(blocks, "calibrating", total=len(decoder.blocks)):
        store.put(block, moments)
    return store


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--windows", type=int, default=64)
    parser.add_argument("--evaluation-windows", type=int, default=40)
    parser.add_argument("--rows", default="")
    options = parser.parse_args()
    setting = load_setting(options.windows, options.evaluation_windows)
    model, decoder, ids, text = setting.model, setting.decoder, setting.input_ids, setting.text
    names = [p.name for p in decoder.projections]
    originals = {p.name: weight(model, p) for p in decoder.projections}

    dense = measure(model, text).perplexity
    print(
        f"dense: {projection_parameters(model, names):,} parameters in the linears, perplexity {dense:.3f}", flush=True
    )
    result: dict[str, Any] = {"machine": machine(), "windows": len(ids), "dense": dense}
    rows = {row["name"]: row for row in read("faithful").get("rows", [])}
    moments: dict[torch.dtype, MomentStore] = {}
    for row in ROWS:
        if options.rows not in row.name:
            continue
        table = family_of(row.table)
        assert table is not None
        plan = uniform_plan(
            decoder,
            method="basis-sharing",
            ratio=row.ratio,
            group_size=row.group_size,
            shared_roles=table.shared_roles,
            form=row.form,
        )
        if row.dtype not in moments:
            moments[row.dtype] = moments_of(model, decoder, ids, row.dtype)
        compressed = copy.deepcopy(model)
        weigher = Weigher(Weighting.SECOND_MOMENT, moments=moments[row.dtype])
        for outcome in factorize(model, decoder, plan, weigher):
            install_factors(compressed, outcome.factors)
        if row.refit:
            refit(compressed, decoder, plan, originals, moments_of(compressed, decoder, ids, row.dtype))
        perplexity = measure(compressed, text).perplexity
        rows[row.name] = {
            "name": row.name,
            "parameters": projection_parameters(compressed, names),
            "perplexity": perplexity,
            "times_dense": perplexity / dense,
            "authors_parameters": row.parameters,
            "authors_perplexity": row.perplexity,
            "difference": None if row.perplexity is None else perplexity / row.perplexity - 1,
        }
        print(rows[row.name], flush=True)
        save("faithful", {**result, "rows": [rows[known.name] for known in ROWS if known.name in rows]})


if __name__ == "__main__":
    main()
