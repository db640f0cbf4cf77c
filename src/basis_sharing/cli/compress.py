"""``basis-sharing compress``."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from basis_sharing.cli import arguments
from basis_sharing.errors import MemoryBudgetError
from basis_sharing.recipe.recipe import Recipe


@arguments.settings_options(recipe_file=True)
def compress(
    model: arguments.ModelArgument,
    output: Annotated[Path, arguments.output_option("Folder for the compressed model.", "DIR")],
    settings: arguments.Given,
    work: arguments.Work = None,
    device: arguments.Device = None,
    max_memory: arguments.MaxMemory = None,
    overwrite: arguments.OverwriteFolder = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what the run will need, time, memory and disk, and stop.")
    ] = False,
    as_json: arguments.AsJson = False,
) -> None:
    """Compress a model and write it as a folder that transformers loads.

    Takes 20 % away from a model, calibrated on Python's own documentation, and measures what it costs:

        basis-sharing compress ./llama -o ./llama-20 --ratio 0.2 --evaluate wikitext2:wiki.test.raw

    Several processes share the work:

        torchrun --nproc-per-node 2 -m basis_sharing compress ./llama -o ./llama-20 --ratio 0.2
    """
    recipe = Recipe.create(**settings)  # reports errors before torch is imported

    from basis_sharing.cli.console import out, progress_bars, written
    from basis_sharing.cli.interrupts import resumable
    from basis_sharing.reports.tables.compression import compression_summary
    from basis_sharing.reports.terminal import printable
    from basis_sharing.run.processes import joined

    if dry_run:
        with joined() as processes:
            if processes.first:
                _show_needs(model, output, device, max_memory, recipe, as_json=as_json)
        return
    from basis_sharing.verbs.compress import compress as run

    call = partial(run, model, recipe, output=output, work=work, device=device, max_memory=max_memory)
    with joined() as processes, resumable(output, work), progress_bars() as progress:
        _, result = call(overwrite=overwrite, progress=progress)
    if not processes.first:
        return
    if as_json:
        print(result.model_dump_json(indent=2))
        return
    out.print(printable(*compression_summary(result)))
    written(output, result.loader)


def _show_needs(
    model: str, output: Path, device: str | None, max_memory: str | None, recipe: Recipe, *, as_json: bool
) -> None:
    from basis_sharing.cli.console import out
    from basis_sharing.reports.tables.estimate import estimate_table
    from basis_sharing.reports.terminal import printable
    from basis_sharing.run.machine import too_little
    from basis_sharing.verbs.estimate import estimate

    needs = estimate(model, recipe, device=device, max_memory=max_memory)
    if as_json:
        print(needs.model_dump_json(indent=2))
    else:
        out.print(printable(estimate_table(needs, output)))
    if needs.least_memory > needs.memory:
        raise MemoryBudgetError(too_little(needs.memory, needs.least_memory))
