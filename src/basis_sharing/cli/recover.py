"""``basis-sharing recover``."""

from pathlib import Path
from typing import Annotated

import typer

from basis_sharing.cli import options


def recover(
    model: Annotated[Path, typer.Argument(help="The folder of a compressed model.", metavar="DIR")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the recovered model.", metavar="DIR")],
    original: Annotated[
        str | None,
        typer.Option(
            help="The model it was made from, which is learned from (default: the one its result names).",
            metavar="MODEL",
            show_default=False,
        ),
    ] = None,
    preset: Annotated[
        str,
        typer.Option(
            help="distill: the factors learn the original's predictions; next-token: they learn the text; paper: LoRA "
            "on the coefficients as in Basis Sharing (rank 8, alpha 32, rate 1e-4, two epochs of the text), merged.",
            metavar="NAME",
        ),
    ] = "distill",
    minutes: Annotated[
        float | None,
        typer.Option(
            help="How long the training may take, about (default: 30; paper: see --epochs).",
            metavar="N",
            show_default=False,
        ),
    ] = None,
    epochs: Annotated[
        float | None, typer.Option(help="Instead of --minutes: passes over the text.", metavar="N", show_default=False)
    ] = None,
    learning_rate: Annotated[
        float | None,
        typer.Option(
            help="Step of the optimizer to begin with: relative to the size of each parameter for factors, absolute "
            "for LoRA (default: the preset's).",
            metavar="R",
            show_default=False,
        ),
    ] = None,
    calibration: options.Calibration = None,
    windows: Annotated[
        int | None, typer.Option(help="Number of windows of text (default: all).", metavar="N", show_default=False)
    ] = None,
    length: Annotated[
        int | None, typer.Option(help="Tokens per window (default: 1024).", metavar="N", show_default=False)
    ] = None,
    seed: options.Seed = None,
    evaluate: Annotated[
        list[str] | None,
        typer.Option(help="Measure perplexity before and after on this text; may be repeated.", metavar="TEXT"),
    ] = None,
    evaluation_windows: options.EvaluationWindows = None,
    device: options.Device = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a model folder that exists.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")] = False,
) -> None:
    """Train a compressed model for a while: a better model of the same structure and size.

    By default the factors are trained for half an hour to predict what the original predicts:

        basis-sharing recover ./llama-40 -o ./llama-40-recovered --calibration wikitext2 --minutes 30
    """
    from basis_sharing.results.recovery import RecoverySettings

    settings = {
        "minutes": minutes,
        "epochs": epochs,
        "learning_rate": learning_rate,
        "calibration": calibration,
        "windows": windows,
        "length": length,
        "seed": seed,
    }
    RecoverySettings.create(preset, **settings)

    from basis_sharing.cli.console import out, progress_bars
    from basis_sharing.cli.interrupts import resumable
    from basis_sharing.reports.tables.recovery import recovery_table
    from basis_sharing.reports.terminal import printable
    from basis_sharing.verbs.recover import recover as run

    with resumable(output, None), progress_bars() as progress:
        result = run(
            model,
            output,
            original=original,
            preset=preset,
            evaluate=tuple(evaluate or ()),
            evaluation_windows=evaluation_windows,
            device=device,
            overwrite=overwrite,
            progress=progress,
            **settings,
        )
    if as_json:
        print(result.model_dump_json(indent=2))
        return
    assert result.recovery is not None
    out.print(printable(recovery_table(result.recovery)))
    out.print(
        f"\n  written to {output}; load it with\n"
        f"  import basis_sharing; AutoModelForCausalLM.from_pretrained({str(output)!r})\n",
        highlight=False,
    )
