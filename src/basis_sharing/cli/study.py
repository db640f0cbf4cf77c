"""``basis-sharing study``."""

from pathlib import Path
from typing import Annotated

import typer

from basis_sharing.cli import options


def study(
    model: Annotated[str, typer.Argument(help="A model folder, a .gguf file, or a hub id.", metavar="MODEL")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for sharing.json and sharing.png.", metavar="DIR")
    ],
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
    no_gradients: Annotated[
        bool,
        typer.Option(
            "--no-gradients",
            help="Study without a backward pass: needs less memory, expects coarser.",
            show_default=False,
        ),
    ] = False,
    calibration: options.Calibration = None,
    windows: options.Windows = None,
    length: options.Length = None,
    seed: options.Seed = None,
    dtype: options.Dtype = None,
    calibration_dtype: options.CalibrationDtype = None,
    work: options.Work = None,
    device: options.Device = None,
    max_memory: options.MaxMemory = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the files of an earlier study.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the study as JSON on standard output.")] = False,
) -> None:
    """Study which layers may share a basis: every role, every pair of layers, ratios 0.2 to 0.7.

    Compares the expected loss of one basis for two layers with that of the best two private ones of the same stored
    size; nothing is compressed:

        basis-sharing study ./llama -o ./llama-study --windows 64
    """
    settings = options.settings_from(
        None,
        ratio=ratio,
        no_gradients=no_gradients,
        calibration=calibration,
        windows=windows,
        length=length,
        seed=seed,
        dtype=dtype,
        calibration_dtype=calibration_dtype,
    )

    from basis_sharing.cli.console import out, progress_bars
    from basis_sharing.reports.study_figure import draw_study
    from basis_sharing.reports.tables.study import conclusion, study_table
    from basis_sharing.reports.terminal import printable
    from basis_sharing.run.files import check_files, write_file
    from basis_sharing.verbs.study import study as run

    data, picture = output / "sharing.json", output / "sharing.png"
    check_files([data, picture], overwrite=overwrite)
    with progress_bars() as progress:
        result = run(
            model,
            distance=distance,
            work=work,
            device=device,
            max_memory=max_memory,
            progress=progress,
            **settings,
        )
    write_file(data, result.write)
    title = Path(model).name or model
    write_file(picture, lambda path: draw_study(result.study, path, title=title, ratio=result.ratio))
    if as_json:
        print(result.model_dump_json())
        return
    out.print(printable(study_table(result.study, title, result.ratio)))
    for note in result.notes:
        out.print(f"  note: {note}", highlight=False, markup=False)
    out.print(f"  {conclusion(result.study, result.ratio)}\n", highlight=False, markup=False)
    out.print(f"  written to {data} and {picture}\n", highlight=False, markup=False)
