"""``basis-sharing export``."""

from pathlib import Path
from typing import Annotated

import typer

from basis_sharing.cli import measuring_arguments as measuring
from basis_sharing.exports.base import EXPORTS

_FORMS = "; ".join(f"{name}: {form.summary}" for name, form in EXPORTS.items())
_WEIGHTS = "; ".join(f"{name}: {', '.join(form.weights)}" for name, form in EXPORTS.items() if form.weights)


def export(
    folder: measuring.CompressedFolder,
    output: measuring.ExportFolder,
    to: Annotated[str, typer.Option(help=f"Form to write. {_FORMS}.", metavar="FORM")] = "dense",
    weights: Annotated[str | None, typer.Option(help=f"Form of the weights. {_WEIGHTS}.", metavar="WEIGHTS")] = None,
    overwrite: measuring.Overwrite = False,
) -> None:
    """Write a compressed model in another form, for tools that know nothing of shared bases.

    The dense form computes the same and is as large as the original was:

        basis-sharing export ./llama-20 -o ./llama-20-dense --to dense

    Exports to a runtime keep the factors, and are compared with the model in PyTorch before they get their name:

        basis-sharing export ./llama-20 -o ./llama-20-onnx --to onnx --weights int8
    """
    from basis_sharing.cli.console import out, progress_bars
    from basis_sharing.results.words import amount_of_bytes
    from basis_sharing.verbs.export import export as run

    with progress_bars() as progress:
        run(folder, output, to=to, weights=weights, overwrite=overwrite, progress=progress)
    written, compressed = amount_of_bytes(_bytes(output)), amount_of_bytes(_bytes(folder))
    for line in _found(output):
        out.print(line, highlight=False, markup=False)
    out.print(f"  written to {output}: {written} on disk ({compressed} compressed)", highlight=False, markup=False)


def _bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _found(output: Path) -> list[str]:
    """Return what the comparison of an export in its runtime has found; nothing where it has none."""
    from basis_sharing.engines.base import ENGINES, MANIFEST
    from basis_sharing.results.export import ExportResult

    if not (output / MANIFEST).is_file():
        return []
    found = ExportResult.read(output / MANIFEST)
    check, title = found.check, ENGINES[found.form].title
    where = f"  in {title} {found.versions[ENGINES[found.form].package]}"
    return [
        f"{where}: {check.same} of {check.tokens} greedy tokens as in PyTorch, logits differ by at most "
        f"{check.largest_difference:.2g}, {check.nats:.2g} nats lost ({found.weights})"
    ]
