"""``basis-sharing export``."""

from pathlib import Path
from typing import Annotated

import typer

from basis_sharing.cli import measuring_arguments as measuring
from basis_sharing.exports.base import EXPORTS

_FORMS = "; ".join(f"{name}: {form.summary}" for name, form in EXPORTS.items())


def export(
    folder: measuring.CompressedFolder,
    output: measuring.ExportFolder,
    to: Annotated[str, typer.Option(help=f"Form to write. {_FORMS}.", metavar="FORM")] = "dense",
    overwrite: measuring.Overwrite = False,
) -> None:
    """Write a compressed model in another form, for tools that know nothing of shared bases.

    The dense form computes the same and is as large as the original was:

        basis-sharing export ./llama-20 -o ./llama-20-dense --to dense
    """
    from basis_sharing.cli.console import out, progress_bars
    from basis_sharing.results.words import amount_of_bytes
    from basis_sharing.verbs.export import export as run

    with progress_bars() as progress:
        run(folder, output, to=to, overwrite=overwrite, progress=progress)
    written, compressed = amount_of_bytes(_bytes(output)), amount_of_bytes(_bytes(folder))
    out.print(f"  written to {output}: {written} on disk ({compressed} compressed)", highlight=False, markup=False)


def _bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
