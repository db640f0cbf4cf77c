"""``basis-sharing inspect``."""

from basis_sharing.cli import measuring_options as measuring


def inspect(model: measuring.Model, as_json: measuring.AsJson = False) -> None:
    """Show what a model consists of: where its memory goes, which parts can be compressed, and what that is worth.

    Reads the configuration only, no weights; of a compressed model it shows what the compression did:

        basis-sharing inspect ./llama
    """
    from basis_sharing.cli.console import out
    from basis_sharing.reports.tables import compression_table, inspection_table
    from basis_sharing.results.compression import CompressionResult
    from basis_sharing.verbs.inspect import inspect as run

    result = run(model)
    if as_json:
        print(result.model_dump_json(indent=2))
    elif isinstance(result, CompressionResult):
        out.print(compression_table(result))
    else:
        out.print(inspection_table(model, result.family, result.rows))
