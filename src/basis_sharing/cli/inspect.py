"""``basis-sharing inspect``."""

import json
from dataclasses import asdict
from typing import Annotated

import typer


def inspect(
    model: Annotated[str, typer.Argument(help="A model folder, a .gguf file, or a hub id.", metavar="MODEL")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the table as JSON on standard output.")] = False,
) -> None:
    """Show what a model consists of: where its memory goes, and which parts can be compressed.

    Reads the configuration only, no weights:

        basis-sharing inspect ./llama
    """
    from basis_sharing.cli.console import out
    from basis_sharing.models.decoder import describe
    from basis_sharing.models.sizes import role_table
    from basis_sharing.models.source import load_skeleton, refuse_compressed, resolve
    from basis_sharing.report.tables import inspection_table

    source = resolve(model)
    refuse_compressed(source)
    skeleton = load_skeleton(source)
    decoder = describe(skeleton)
    rows = role_table(skeleton, decoder)
    if as_json:
        print(json.dumps({"family": decoder.family.name, "rows": [asdict(row) for row in rows]}, indent=2))
        return
    out.print(inspection_table(model, decoder.family.name, rows))
