"""``basis-sharing report``."""

from pathlib import Path

from basis_sharing.cli import measuring_arguments as measuring


def report(
    folder: measuring.CompressedFolder,
    output: measuring.Page = Path("report.html"),
    results: measuring.Results = None,
    figures: measuring.Figures = None,
    overwrite: measuring.Overwrite = False,
) -> None:
    """Write a report about a compressed model: one HTML file without scripts or network, to read, print or send.

    Sizes and perplexity before and after, where the bytes went, ranks and groups as pictures, how to load the model
    and how to repeat the compression; with --results also agreement with the original, samples, tasks and speed:

        basis-sharing report ./llama-20 -o llama-20.html --results compare.json --results bench.json
    """
    from basis_sharing.cli.console import out
    from basis_sharing.verbs.report import report as run

    written = run(folder, results or (), output=output, figures=figures, overwrite=overwrite)
    files = str(output) if figures is None else f"{output} and {len(written) - 1} pictures to {figures}"
    out.print(f"\n  written to {files}\n", highlight=False, markup=False, soft_wrap=True)
