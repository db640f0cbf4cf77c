"""``basis-sharing report``."""

from pathlib import Path
from typing import Annotated

import typer


def report(
    folder: Annotated[Path, typer.Argument(help="A folder that `basis-sharing compress` wrote.", metavar="DIR")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The HTML file.", metavar="FILE")] = Path(
        "report.html"
    ),
    results: Annotated[
        list[Path] | None,
        typer.Option(
            help="Results about the same model, of compare -o, bench -o or eval --tasks --json, rollout.json of a "
            "rollout, or basis_sharing.json of another compression of the same original, which becomes a point of the "
            "curve; may be repeated.",
            metavar="FILE",
            show_default=False,
        ),
    ] = None,
    figures: Annotated[
        Path | None,
        typer.Option(
            help="Write the pictures into this folder too, as SVG and PNG.", metavar="FOLDER", show_default=False
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that exist.")] = False,
) -> None:
    """Write a report about a compressed model: one HTML file without scripts or network, to read, print or send.

    Sizes and perplexity before and after, where the bytes went, ranks and groups as pictures, how to load the model
    and how to repeat the compression; with --results also agreement with the original, samples, tasks and speed:

        basis-sharing report ./llama-20 -o llama-20.html --results compare.json --results bench.json
    """
    from basis_sharing.cli.console import out
    from basis_sharing.reports.html import write_report

    written = write_report(folder, results or (), output=output, figures=figures, overwrite=overwrite)
    files = str(output) if figures is None else f"{output} and {len(written) - 1} pictures to {figures}"
    out.print(f"\n  written to {files}\n", highlight=False, markup=False, soft_wrap=True)
