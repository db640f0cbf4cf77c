"""``basis-sharing densify``."""

from pathlib import Path
from typing import Annotated

import typer


def densify(
    model: Annotated[Path, typer.Argument(help="The folder of a compressed model.", metavar="MODEL")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the dense model.", metavar="FOLDER")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a model folder that exists.")] = False,
) -> None:
    """Multiply the factors of a compressed model out and write an ordinary dense model.

    It computes the same and is as large as the original was: for tools that quantize or convert dense weights only.

        basis-sharing densify ./llama-20 -o ./llama-20-dense
    """
    from basis_sharing.cli.console import out, progress_bars
    from basis_sharing.exports.dense import densify as run
    from basis_sharing.models.sizes import weight_file_bytes
    from basis_sharing.results.words import amount_of_bytes

    with progress_bars() as progress:
        run(model, output, overwrite=overwrite, progress=progress)
    out.print(
        f"  written to {output}: {amount_of_bytes(weight_file_bytes(output))} on disk "
        f"({amount_of_bytes(weight_file_bytes(model))} compressed)",
        highlight=False,
    )
