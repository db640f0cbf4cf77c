"""``basis-sharing plan``."""

from pathlib import Path
from typing import Annotated

import typer

from basis_sharing.cli import options
from basis_sharing.cli.options import option

_DEFAULT_RATIO = "0.2"


def plan(
    targets: Annotated[
        list[str],
        typer.Argument(help="A model folder, a .gguf file, or a hub id; or: diff PLAN PLAN.", metavar="MODEL"),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", help="File for the plan (JSON); the curve goes beside it as .png.", metavar="FILE"
        ),
    ] = Path("plan.json"),
    ratio: options.Ratio = None,
    max_parameters: options.MaxParameters = None,
    max_bytes: options.MaxBytes = None,
    max_flops: options.MaxFlops = None,
    max_perplexity_increase: options.MaxPerplexityIncrease = None,
    no_gradients: options.NoGradients = False,
    no_sharing: options.NoSharing = False,
    no_joint_roles: options.NoJointRoles = False,
    rank_multiple: options.RankMultiple = None,
    roles: options.Roles = None,
    calibration: options.Calibration = None,
    windows: options.Windows = None,
    length: options.Length = None,
    seed: options.Seed = None,
    form: options.FormOption = None,
    dtype: options.Dtype = None,
    calibration_dtype: options.CalibrationDtype = None,
    evaluate: Annotated[
        str | None, option("Measure the plan on this text, to scale the prediction", "evaluate", "TEXT", "none")
    ] = None,
    evaluation_windows: options.EvaluationWindows = None,
    recipe: options.RecipeFile = None,
    work: options.Work = None,
    device: options.Device = None,
    max_memory: options.MaxMemory = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a plan that exists.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the forecast as JSON on standard output.")] = False,
) -> None:
    """Plan a compression and show what it will cost, without compressing anything.

    Writes the plan, which `compress --plan` executes, and draws expected perplexity against size. Without a target the
    plan is for --ratio 0.2; the curve is the same for every target. Compares two plans:

        basis-sharing plan ./llama --ratio 0.3 -o llama-30.json

        basis-sharing plan diff llama-30.json edited.json
    """
    if targets[0] == "diff":
        _diff(targets[1:])
        return
    if len(targets) > 1:
        raise typer.BadParameter(f"one model at a time: {targets[1]} is too much.")
    targeted = (max_parameters, max_bytes, max_flops, max_perplexity_increase, recipe)
    if ratio is None and all(value is None for value in targeted):
        ratio = _DEFAULT_RATIO
    settings = options.settings_from(
        recipe,
        ratio=ratio,
        max_parameters=max_parameters,
        max_bytes=max_bytes,
        max_flops=max_flops,
        max_perplexity_increase=max_perplexity_increase,
        no_gradients=no_gradients,
        no_sharing=no_sharing,
        no_joint_roles=no_joint_roles,
        rank_multiple=rank_multiple,
        roles=roles,
        calibration=calibration,
        windows=windows,
        length=length,
        seed=seed,
        form=form,
        dtype=dtype,
        calibration_dtype=calibration_dtype,
        evaluate=(evaluate,) if evaluate else None,
        evaluation_windows=evaluation_windows,
    )

    from basis_sharing.cli.console import out, progress_bars
    from basis_sharing.reports.forecast_figure import draw_forecast
    from basis_sharing.reports.tables.forecast import forecast_table
    from basis_sharing.reports.terminal import printable
    from basis_sharing.run.files import check_files, write_file
    from basis_sharing.verbs.plan import plan_model

    picture = output.with_suffix(".png")
    check_files([output, picture], overwrite=overwrite)
    with progress_bars() as progress:
        forecast = plan_model(
            targets[0], work=work, device=device, max_memory=max_memory, progress=progress, **settings
        )
    write_file(output, forecast.plan.write)
    write_file(picture, lambda path: draw_forecast(forecast, path))
    if as_json:
        print(forecast.model_dump_json(indent=2))
        return
    out.print(printable(forecast_table(forecast)))
    out.print(
        f"\n  written to {output} and {picture}; execute it with\n"
        f"  basis-sharing compress {targets[0]} -o DIR --plan {output}\n",
        highlight=False,
    )


def _diff(paths: list[str]) -> None:
    if len(paths) != 2:
        raise typer.BadParameter("diff compares two plans: basis-sharing plan diff A.json B.json.")

    from basis_sharing.cli.console import out
    from basis_sharing.plans.plan import Plan
    from basis_sharing.reports.tables.plans import plan_difference
    from basis_sharing.reports.terminal import printable

    first, second = (Plan.read(Path(path)) for path in paths)
    out.print(printable(*plan_difference(first, second, (Path(paths[0]).name, Path(paths[1]).name))))
