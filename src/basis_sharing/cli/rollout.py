"""``basis-sharing rollout``."""

from pathlib import Path
from typing import Annotated

import typer

from basis_sharing.cli import options


def rollout(
    model: Annotated[str, typer.Argument(help="A model folder, a .gguf file, or a hub id.", metavar="MODEL")],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help="Folder for all steps; an interrupted rollout goes on.", metavar="DIR"),
    ],
    max_perplexity_increase: options.MaxIncrease = None,
    max_kl: options.MaxKl = None,
    min_agreement: options.MinAgreement = None,
    ratios: Annotated[
        str, typer.Option(help="Fractions of parameters to remove, one step each.", metavar="R,R,...")
    ] = "0.1,0.2,0.3,0.4,0.5",
    text: Annotated[
        str | None,
        typer.Option(
            help="Text to compare on, as for calibration (default: python-docs:heldout).",
            metavar="TEXT",
            show_default=False,
        ),
    ] = None,
    evaluation_windows: options.EvaluationWindows = None,
    no_benchmark: Annotated[bool, typer.Option("--no-benchmark", help="Do not measure speed and memory.")] = False,
    method: options.Method = None,
    no_gradients: options.NoGradients = False,
    no_sharing: options.NoSharing = False,
    no_joint_roles: options.NoJointRoles = False,
    rank_multiple: options.RankMultiple = None,
    calibration: options.Calibration = None,
    windows: options.Windows = None,
    length: options.Length = None,
    seed: options.Seed = None,
    form: options.FormOption = None,
    dtype: options.Dtype = None,
    calibration_dtype: options.CalibrationDtype = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Start anew where the folder holds another rollout.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the rollout as JSON on standard output.")] = False,
) -> None:
    """Compress step by step, compare every step with the original, and keep the last one within your limits.

    The first step compresses only the roles that hold the most memory; then all roles, more and more. The last good
    model is in DIR/best. Exit code 1 if already the first step breaks a limit:

        basis-sharing rollout ./llama -o ./llama-rollout --max-perplexity-increase 10% --min-agreement 85%
    """
    from basis_sharing.results.comparison import Limits

    steps = [part.strip() for part in ratios.split(",") if part.strip()]
    settings = options.settings_from(
        None,
        ratio=steps[0] if steps else None,
        method=method,
        no_gradients=no_gradients,
        no_sharing=no_sharing,
        no_joint_roles=no_joint_roles,
        rank_multiple=rank_multiple,
        calibration=calibration,
        windows=windows,
        length=length,
        seed=seed,
        form=form,
        dtype=dtype,
        calibration_dtype=calibration_dtype,
        evaluation_windows=evaluation_windows,
    )
    for own in ("ratio", "evaluation_windows"):
        settings.pop(own, None)
    limits = {"max_kl": max_kl, "max_perplexity_increase": max_perplexity_increase, "min_agreement": min_agreement}
    checked = Limits.create(**{name: value for name, value in limits.items() if value is not None})

    from basis_sharing.cli.console import err, out, progress_bars
    from basis_sharing.evaluation.perplexity import DEFAULT_TEXT
    from basis_sharing.reports.tables.rollout import rollout_summary, step_line
    from basis_sharing.reports.terminal import printable
    from basis_sharing.verbs.rollout import rollout as run

    with progress_bars() as progress:
        result = run(
            model,
            output,
            checked,
            ratios=steps,
            text=text or DEFAULT_TEXT,
            evaluation_windows=evaluation_windows,
            benchmark=not no_benchmark,
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
