"""What a common order of the inputs costs, against pivots of its own for every basis, and how large B~ gets.

``python benchmarks/ordering.py FOLDER ...``, compressed folders in fp32 (a minute for each on two cores). For every
basis the pivots that it would have alone are chosen anew. Both kinds of factors are rounded to bf16, multiplied out,
and the perplexity of both models is measured on the first ``--evaluation-windows`` windows of ``wiki.test.raw``, in
fp32, so that only the rounding of the stored numbers differs.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from basis_sharing.checkpoint.loading import load_any
from basis_sharing.cli.console import progress_bars
from basis_sharing.evaluation.perplexity import measure, prepare_text
from basis_sharing.linalg.pivoting import pivot
from basis_sharing.runtime.factorized_basis_sharing import FactorizedLinear, full_basis
from common import TEST_TEXT, machine, need_data, save


def rounded(tensor: Tensor) -> Tensor:
    """Return a tensor in bf16, as fp64."""
    return tensor.bfloat16().double()


def multiplied_out(module: FactorizedLinear, *, own_pivots: bool) -> tuple[Tensor, float]:
    """Return the product of the rounded factors, shape ``[d_in, d_out]``, and the largest entry of B~."""
    B, C = full_basis(module).double(), module.coeff.weight.double().T
    if not module.pivoted:
        return rounded(B) @ rounded(C), 0.0
    order = torch.arange(len(B)) if module.order is None else module.order.long()
    pivots, rest = order[: module.rank], order[module.rank :]
    if own_pivots:
        found = pivot(B)
        pivots, rest, B, C = found.pivots, found.rest, found.basis(), found.transform @ C
    product = torch.zeros(len(B), C.shape[1], dtype=torch.float64)
    product[pivots] = rounded(C)
    product[rest] = rounded(B[rest]) @ rounded(C)
    return product, B[rest].abs().max().item()


@torch.no_grad()
def measured(folder: Path, windows: int, progress: Any) -> dict[str, Any]:
    """Return largest entries and losses of one folder."""
    model, tokenizer = load_any(folder, torch.float32)
    text = prepare_text(model, tokenizer, TEST_TEXT, windows=windows, length=2048)
    modules = {name: module for name, module in model.named_modules() if isinstance(module, FactorizedLinear)}
    found: dict[str, Any] = {
        "projections": len(modules),
        "pivoted": sum(module.pivoted for module in modules.values()),
        "put_in_order": sum(module.order is not None for module in modules.values()),
        "fp32": measure(model, text, progress=progress).nats_per_token,
    }
    for own in (False, True):
        largest = 0.0
        for name, module in modules.items():
            product, most = multiplied_out(module, own_pivots=own)
            dense = nn.Linear(product.shape[0], product.shape[1], bias=module.coeff.bias is not None)
            dense.weight.copy_(product.T)
            if module.coeff.bias is not None:
                dense.bias.copy_(module.coeff.bias)
            model.set_submodule(name, dense)
            largest = max(largest, most)
        kind = "own_pivots" if own else "in_order"
        found[kind] = {"largest": largest, "bf16": measure(model, text, progress=progress).nats_per_token}
        for name, module in modules.items():
            model.set_submodule(name, module)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--evaluation-windows", type=int, default=4)
    arguments = parser.parse_args()
    need_data()
    with progress_bars() as progress:
        found = {folder.name: measured(folder, arguments.evaluation_windows, progress) for folder in arguments.folders}
    print(found)
    save("ordering", {"machine": machine(), "windows": arguments.evaluation_windows, "folders": found})


if __name__ == "__main__":
    main()
