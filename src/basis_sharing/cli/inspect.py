"""``basis-sharing inspect``."""

from typing import Annotated

import typer

from basis_sharing.cli import arguments
from basis_sharing.cli import measuring_arguments as measuring


def inspect(
    model: measuring.Model,
    runs_on: Annotated[
        str | None, typer.Option("--for", help="edge: what the model needs in other runtimes.", metavar="edge")
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option(
            help="With --for edge: memory for weights, e.g. 200MiB, and what has to go to fit.", metavar="SIZE"
        ),
    ] = None,
    runtime: Annotated[
        str | None, typer.Option(help="With --for edge: one runtime only, e.g. onnx.", metavar="RUNTIME")
    ] = None,
    as_json: arguments.AsJson = False,
) -> None:
    """Show what a model consists of: where its memory goes, which parts can be compressed, and what that is worth.

    Reads the configuration only, no weights; of a compressed model it shows what the compression did:

        basis-sharing inspect ./llama

    For a phone or a small board, what exports need, and how much has to be removed to fit:

        basis-sharing inspect ./llama --for edge --memory 200MiB
    """
    from basis_sharing.cli.console import out
    from basis_sharing.reports.tables.compression import compression_summary
    from basis_sharing.reports.tables.inspection import edge_table, inspection_table
    from basis_sharing.reports.terminal import printable
    from basis_sharing.results.compression import CompressionResult
    from basis_sharing.verbs.inspect import inspect as run

    result = run(model, runs_on=runs_on, memory=memory, runtime=runtime)
    if as_json:
        print(result.model_dump_json(indent=2))
    elif isinstance(result, CompressionResult):
        out.print(printable(*compression_summary(result)))
    elif result.exports:
        out.print(printable(edge_table(model, result.exports, result.memory)))
    else:
        out.print(printable(inspection_table(model, result.family, result.rows)))
