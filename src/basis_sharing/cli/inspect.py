"""``basis-sharing inspect``."""

from basis_sharing.cli import arguments
from basis_sharing.cli import measuring_arguments as measuring


def inspect(model: measuring.Model, as_json: arguments.AsJson = False) -> None:
    """Show what a model consists of: where its memory goes, which parts can be compressed, and what that is worth.

    Reads the configuration only, no weights; of a compressed model it shows what the compression did:

        basis-sharing inspect ./llama
    """
    from basis_sharing.cli.console import out
    from basis_sharing.reports.tables.compression import compression_summary
    from basis_sharing.reports.tables.inspection import inspection_table
    from basis_sharing.reports.terminal import printable
    from basis_sharing.results.compression import CompressionResult
    from basis_sharing.verbs.inspect import inspect as run

    result = run(model)
    if as_json:
        print(result.model_dump_json(indent=2))
    elif isinstance(result, CompressionResult):
        out.print(printable(*compression_summary(result)))
    else:
        out.print(printable(inspection_table(model, result.family, result.rows)))
