"""``basis-sharing inspect``."""

import json
from dataclasses import asdict
from typing import Annotated

import typer


def inspect(
    model: Annotated[str, typer.Argument(help="A model folder, a .gguf file, or a hub id.", metavar="MODEL")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the table as JSON on standard output.")] = False,
) -> None:
    """Show what a model consists of: where its memory goes, which parts can be compressed, and what that is worth.

    Reads the configuration only, no weights; of a compressed model it shows what the compression did:

        basis-sharing inspect ./llama
    """
    from basis_sharing.cli.console import out
    from basis_sharing.models.decoder import describe
    from basis_sharing.models.sizes import role_table, starting_point
    from basis_sharing.models.source import load_skeleton, refuse_compressed, resolve
    from basis_sharing.reports.tables.compression import compression_summary
    from basis_sharing.reports.tables.inspection import SHOWN_RATIOS, inspection_table
    from basis_sharing.reports.terminal import printable
    from basis_sharing.results.compression import RESULT_FILE, CompressionResult

    source = resolve(model)
    if source.path is not None and (source.path / RESULT_FILE).is_file():
        result = CompressionResult.read(source.path / RESULT_FILE)
        if as_json:
            print(result.model_dump_json(indent=2))
        else:
            out.print(printable(*compression_summary(result)))
        return
    refuse_compressed(source)
    skeleton = load_skeleton(source)
    decoder = describe(skeleton)
    rows = role_table(skeleton, decoder)
    if as_json:
        described = [
            {**asdict(row), "saved_bytes": {f"{ratio:g}": row.saved_bytes(ratio) for ratio in SHOWN_RATIOS}}
            for row in rows
        ]
        start = [row.name for row in starting_point(rows)]
        print(json.dumps({"family": decoder.family.name, "start_with": start, "rows": described}, indent=2))
        return
    out.print(printable(inspection_table(model, decoder.family.name, rows)))
