"""``basis-sharing rollout``."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from basis_sharing.cli import arguments
from basis_sharing.recipe.recipe import Recipe
from basis_sharing.recipe.target import TARGETS


@arguments.settings_options(without=(*TARGETS, "roles", "evaluate"))
def rollout(
    model: arguments.ModelArgument,
    output: Annotated[Path, arguments.output_option("Folder for all steps; an interrupted rollout is resumed.", "DIR")],
    settings: arguments.Given,
    max_perplexity_increase: arguments.MaxIncrease = None,
    max_kl: arguments.MaxKl = None,
    min_agreement: arguments.MinAgreement = None,
    ratios: Annotated[
        str, typer.Option(help="Fractions of parameters to remove, one step each.", metavar="R,R,...")
    ] = "0.1,0.2,0.3,0.4,0.5",
    text: Annotated[
        str, typer.Option(help="Text to compare on, as for calibration.", metavar="TEXT")
    ] = "python-docs:heldout",
    no_benchmark: Annotated[bool, typer.Option("--no-benchmark", help="Do not measure speed and memory.")] = False,
    device: arguments.Device = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace another rollout in the folder.")] = False,
    as_json: arguments.AsJson = False,
) -> None:
    """Compress step by step, compare every step with the original, and keep the last one within your limits.

    The first step compresses only the roles that hold the most memory; then all roles, more and more. The last good
    model is in DIR/best. Exit code 1 if already the first step breaks a limit:

        basis-sharing rollout ./llama -o ./llama-rollout --max-perplexity-increase 10% --min-agreement 85%
    """
    from basis_sharing.results.comparison import Limits

    steps = [part.strip() for part in ratios.split(",") if part.strip()]
    Recipe.create(ratio=steps[0] if steps else None, **settings)
    limits = {"max_kl": max_kl, "max_perplexity_increase": max_perplexity_increase, "min_agreement": min_agreement}
    checked = Limits.create(**{name: value for name, value in limits.items() if value is not None})

    from basis_sharing.cli.console import err, out, progress_bars
    from basis_sharing.reports.tables.rollout import rollout_summary, step_line
    from basis_sharing.reports.terminal import printable
    from basis_sharing.verbs.rollout import rollout as run

    call = partial(run, model, output, checked, ratios=steps, text=text, benchmark=not no_benchmark, device=device)
    with progress_bars() as progress:
        result = call(
            overwrite=overwrite,
            progress=progress,
            on_step=lambda step: err.print(f"  {step_line(step)}", highlight=False, markup=False),
            **settings,
        )
    if as_json:
        print(result.model_dump_json(indent=2))
    else:
        out.print(printable(*rollout_summary(result)))
        if result.best is not None:
            out.print(f"\n  the model that is kept: {output / 'best'}\n", highlight=False, markup=False)
    if result.best is None:
        raise typer.Exit(1)
