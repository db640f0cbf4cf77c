"""``basis-sharing study``."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from basis_sharing.cli import arguments
from basis_sharing.recipe.recipe import Recipe

_STUDIED = ("gradients", "dtype", "calibration", "windows", "length", "seed", "calibration_dtype")


@arguments.settings_options(without=tuple(name for name in Recipe.model_fields if name not in _STUDIED))
def study(
    model: arguments.ModelArgument,
    output: Annotated[Path, arguments.output_option("Folder for sharing.json and sharing.png.", "DIR")],
    settings: arguments.Given,
    ratio: Annotated[
        str, typer.Option(help="Fraction of the parameters removed that table and maps show.", metavar="R")
    ] = "0.4",
    distance: Annotated[
        int | None,
        typer.Option(
            help="Compare only layers that are at most so far apart, which is quicker (default: all).",
            metavar="N",
            show_default=False,
        ),
    ] = None,
    work: arguments.Work = None,
    device: arguments.Device = None,
    max_memory: arguments.MaxMemory = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the files of an earlier study.")] = False,
    as_json: arguments.AsJson = False,
) -> None:
    """Study which layers may share a basis: every role, every pair of layers, ratios 0.2 to 0.7.

    Compares the expected loss of one basis for two layers with that of the best two private ones of the same stored
    size; nothing is compressed:

        basis-sharing study ./llama -o ./llama-study --windows 64
    """
    Recipe.create(ratio=ratio, **settings)  # reports errors before torch is imported

    from basis_sharing.cli.console import out, progress_bars
    from basis_sharing.reports.study_figure import draw_study
    from basis_sharing.reports.tables.study import conclusion, study_table
    from basis_sharing.reports.terminal import printable
    from basis_sharing.run.files import check_files, write_file
    from basis_sharing.verbs.study import study as run

    data, picture = output / "sharing.json", output / "sharing.png"
    check_files([data, picture], overwrite=overwrite)
    call = partial(run, model, ratio, distance=distance, work=work, device=device, max_memory=max_memory)
    with progress_bars() as progress:
        result = call(progress=progress, **settings)
    write_file(data, result.write)
    title = Path(model).name or model
    write_file(picture, lambda path: draw_study(result.study, path, title=title, ratio=result.ratio))
    if as_json:
        print(result.model_dump_json())
        return
    out.print(printable(study_table(result.study, title, result.ratio)))
    for sentence in (*(f"note: {note}" for note in result.notes), f"{conclusion(result.study, result.ratio)}\n"):
        out.print(f"  {sentence}", highlight=False, markup=False)
    out.print(f"  written to {data} and {picture}\n", highlight=False, markup=False)
