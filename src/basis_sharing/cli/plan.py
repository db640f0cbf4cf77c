"""``basis-sharing plan`` and ``basis-sharing plan diff``."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from basis_sharing.cli import arguments
from basis_sharing.recipe.recipe import Recipe

_DEFAULT_RATIO = "0.2"
_OTHER_VERBS = ("plan", "method", "group_size", "share", "refit", "refine")


@arguments.settings_options(without=_OTHER_VERBS, recipe_file=True)
def plan(
    model: arguments.ModelArgument,
    settings: arguments.Given,
    output: Annotated[
        Path, arguments.output_option("File for the plan (JSON); the curve goes beside it as .png.", "FILE")
    ] = Path("plan.json"),
    baselines: Annotated[
        str, typer.Option(help="Published methods whose expected loss is computed as well, or none.", metavar="NAMES")
    ] = "basis-sharing,svd-llm,asvd,fwsvd,svd",
    work: arguments.Work = None,
    device: arguments.Device = None,
    max_memory: arguments.MaxMemory = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a plan that exists.")] = False,
    as_json: arguments.AsJson = False,
) -> None:
    """Plan a compression and show what it will cost, without compressing anything.

    Writes the plan, which `compress --plan` executes, and draws expected perplexity against size and speed. Without a
    target the plan is for --ratio 0.2; the curves are the same for every target:

        basis-sharing plan ./llama --ratio 0.3 -o llama-30.json
    """
    recipe = Recipe.create(**arguments.with_target(settings, _DEFAULT_RATIO))

    from basis_sharing.cli.console import out, progress_bars
    from basis_sharing.reports.forecast_figure import draw_forecast
    from basis_sharing.reports.tables.forecast import forecast_tables
    from basis_sharing.reports.terminal import printable
    from basis_sharing.run.files import check_files, write_file
    from basis_sharing.verbs.plan import plan as run

    picture = output.with_suffix(".png")
    check_files([output, picture], overwrite=overwrite)
    names = () if baselines == "none" else tuple(name.strip() for name in baselines.split(","))
    call = partial(run, model, recipe, baselines=names, work=work, device=device, max_memory=max_memory)
    with progress_bars() as progress:
        forecast = call(progress=progress)
    write_file(output, forecast.plan.write)
    write_file(picture, lambda path: draw_forecast(forecast, path))
    if as_json:
        print(forecast.model_dump_json(indent=2))
        return
    out.print(printable(*forecast_tables(forecast)))
    out.print(
        f"\n  written to {output} and {picture}; execute it with\n"
        f"  basis-sharing compress {model} -o DIR --plan {output}\n",
        highlight=False,
    )


def diff(
    first: Annotated[Path, typer.Argument(help="A plan.", metavar="PLAN")],
    second: Annotated[Path, typer.Argument(help="Another plan.", metavar="PLAN")],
) -> None:
    """Compare two plans: which projections they treat differently.

    basis-sharing plan diff llama-30.json edited.json
    """
    from basis_sharing.cli.console import out
    from basis_sharing.reports.tables.plans import difference_of_files
    from basis_sharing.reports.terminal import printable

    out.print(printable(*difference_of_files(first, second)))
