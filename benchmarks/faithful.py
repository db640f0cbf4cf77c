"""How faithful: the paper's method against the authors' own code, on SmolLM2-135M, in fp32.

``python benchmarks/faithful.py`` (an hour and a half on two cores; ``--rows TEXT`` runs the rows whose name contains
TEXT). Calibration is on the 64 given token windows; perplexity is that of the first 40 windows of 2048 tokens of
``wiki.test.raw``. The figures of the authors' code are those of the Foundation issue; it has none for the rows without
one.
"""

import argparse
import tempfile
from dataclasses import dataclass
from typing import Any

from basis_sharing import compress, evaluate, load
from basis_sharing.cli.console import progress_bars
from basis_sharing.recipe.recipe import RecipeKeywords
from common import CALIBRATION, TEST_TEXT, machine, need_data, read, save, smollm2


@dataclass(frozen=True)
class Row:
    """One setting, and what the authors' code gives for it where that is known."""

    name: str
    settings: RecipeKeywords
    parameters: int | None = None
    perplexity: float | None = None


BASIS_SHARING, SVD_LLM = RecipeKeywords(method="basis-sharing"), RecipeKeywords(method="svd-llm")
IN_BF16 = RecipeKeywords(ratio=0.2, calibration_dtype="bfloat16")
ROWS = (
    Row("basis-sharing, 20 %", {**BASIS_SHARING, "ratio": 0.2}, 84_893_760, 72.730),
    Row("svd-llm, 20 %", {**SVD_LLM, "ratio": 0.2}, 84_873_600, 65.915),
    Row("basis-sharing, Mistral share table, 20 %", {**BASIS_SHARING, "ratio": 0.2, "share": ("mistral",)}),
    Row("basis-sharing without refit, 40 %", {**BASIS_SHARING, "ratio": 0.4, "refit": "never"}),
    Row("svd-llm, 40 %", {**SVD_LLM, "ratio": 0.4}),
    Row("basis-sharing, 40 %", {**BASIS_SHARING, "ratio": 0.4, "refit": "always"}),
    Row("basis-sharing, 20 %, calibrated in bf16", {**BASIS_SHARING, **IN_BF16}),
    Row("basis-sharing, 20 %, calibrated in bf16, pivoted", {**BASIS_SHARING, **IN_BF16, "form": "pivoted"}),
    Row("svd-llm, 20 %, calibrated in bf16, pivoted", {**SVD_LLM, **IN_BF16, "form": "pivoted"}),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--windows", type=int, default=64)
    parser.add_argument("--evaluation-windows", type=int, default=40)
    parser.add_argument("--rows", default="")
    options = parser.parse_args()
    need_data()
    original, tokenizer = load(smollm2(), dtype="float32", device="cpu")

    def perplexity(model: Any) -> float:
        windows = options.evaluation_windows
        found = evaluate(model, TEST_TEXT, tokenizer=tokenizer, evaluation_windows=windows, length=2048)
        return found.perplexity

    dense = perplexity(original)
    print(f"dense: perplexity {dense:.3f}", flush=True)
    common: RecipeKeywords = {
        "calibration": CALIBRATION,
        "windows": options.windows,
        "length": 2048,
        "dtype": "float32",
        "calibration_dtype": "float32",
    }
    rows = {row["name"]: row for row in read("faithful").get("rows", [])}
    with tempfile.TemporaryDirectory() as work, progress_bars() as progress:
        for row in (row for row in ROWS if options.rows in row.name):
            settings: RecipeKeywords = {**common, **row.settings}
            model, result = compress(smollm2(), work=work, device="cpu", progress=progress, **settings)
            assert result.calibration is not None
            found = perplexity(model)
            rows[row.name] = {
                "name": row.name,
                "parameters": result.after.projection_parameters,
                "perplexity": found,
                "times_dense": found / dense,
                "authors_parameters": row.parameters,
                "authors_perplexity": row.perplexity,
                "difference": None if row.perplexity is None else found / row.perplexity - 1,
            }
            print(rows[row.name], flush=True)
            listed = [rows[known.name] for known in ROWS if known.name in rows]
            about = {"machine": machine(), "windows": result.calibration.windows, "dense": dense}
            save("faithful", {**about, "rows": listed})


if __name__ == "__main__":
    main()
