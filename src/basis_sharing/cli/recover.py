"""``basis-sharing recover``."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from basis_sharing.cli import arguments
from basis_sharing.recipe.evaluation import Evaluation
from basis_sharing.recipe.recovery import RecoverySettings


class RecoverOptions(Evaluation, RecoverySettings):
    """The settings of a recovery, and of the evaluation before and after."""


@arguments.settings_options(RecoverOptions)
def recover(
    folder: Annotated[Path, typer.Argument(help="The folder of a compressed model.", metavar="DIR")],
    output: Annotated[Path, arguments.output_option("Folder for the recovered model.", "DIR")],
    settings: arguments.Given,
    original: Annotated[
        str | None,
        typer.Option(
            help="The model it was made from, the teacher of a distillation (default: the one its result names).",
            metavar="MODEL",
            show_default=False,
        ),
    ] = None,
    device: arguments.Device = None,
    overwrite: arguments.OverwriteFolder = False,
    as_json: arguments.AsJson = False,
) -> None:
    """Train a compressed model for a while: a better model of the same structure and size.

    By default the factors are trained for half an hour to predict what the original predicts:

        basis-sharing recover ./llama-40 -o ./llama-40-recovered --calibration wikitext2 --minutes 30
    """
    evaluation = {name: settings.pop(name) for name in Evaluation.model_fields if name in settings}
    recovery = RecoverySettings.create(**settings)
    Evaluation.create(**evaluation)

    from basis_sharing.cli.console import out, progress_bars, written
    from basis_sharing.cli.interrupts import resumable
    from basis_sharing.reports.tables.recovery import recovery_table
    from basis_sharing.reports.terminal import printable
    from basis_sharing.verbs.recover import recover as run

    call = partial(run, folder, output, recovery, original=original, device=device, overwrite=overwrite)
    with resumable(output, None), progress_bars() as progress:
        result = call(progress=progress, **evaluation)
    if as_json:
        print(result.model_dump_json(indent=2))
        return
    assert result.recovery is not None
    out.print(printable(recovery_table(result.recovery)))
    written(output, result.loader)
