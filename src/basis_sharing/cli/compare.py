"""``basis-sharing compare``."""

from functools import partial
from typing import TYPE_CHECKING

import typer

from basis_sharing.cli import arguments
from basis_sharing.cli import measuring_arguments as measuring

if TYPE_CHECKING:
    from basis_sharing.results.comparison import Limits


def compare(
    models: measuring.ComparedModels,
    text: measuring.ComparedText = None,
    evaluation_windows: measuring.EvaluationWindows = None,
    windows: measuring.RenamedWindows = None,
    length: measuring.Length = None,
    prompts: measuring.Prompts = None,
    new_tokens: measuring.NewTokens = None,
    disagreements: measuring.Disagreements = 10,
    dtype: measuring.Dtype = "auto",
    device: measuring.Device = None,
    max_kl: arguments.MaxKl = None,
    max_perplexity_increase: arguments.MaxIncrease = None,
    min_agreement: arguments.MinAgreement = None,
    max_drift: measuring.MaxDrift = None,
    tasks: measuring.Tasks = None,
    task_data: measuring.TaskData = None,
    limit: measuring.TaskLimit = None,
    no_cache: measuring.NoCache = False,
    baseline: measuring.Baseline = None,
    output: measuring.ResultFile = None,
    overwrite: measuring.Overwrite = False,
    as_json: arguments.AsJson = False,
) -> None:
    """Compare two models: perplexity, agreement, where they disagree most, and what they write.

    One sentence at the end is the answer. Exit code 0 if every limit is held (or none is set), 1 if one is broken:

        basis-sharing compare ./llama ./llama-20 --max-perplexity-increase 5% --min-agreement 90% -o results.json

    Later, or on another machine, the compressed model alone can be measured again and held against the same limits:

        basis-sharing compare --baseline results.json ./llama-20 --max-drift 1%
    """
    from basis_sharing.run.files import check_files

    limits = _limits(max_kl, max_perplexity_increase, min_agreement, max_drift)
    if output is not None:
        check_files([output], overwrite=overwrite)

    from basis_sharing.cli.console import progress_bars
    from basis_sharing.cli.printing import deliver
    from basis_sharing.reports.tables.comparison import comparison_summary
    from basis_sharing.verbs.compare import compare as run

    call = partial(run, *models, baseline=baseline, text=text, evaluation_windows=evaluation_windows, length=length)
    call = partial(call, prompts=prompts, new_tokens=new_tokens, disagreements=disagreements, limits=limits)
    call = partial(call, dtype=dtype, device=device, tasks=() if tasks is None else tasks, task_data=task_data)
    with progress_bars() as progress:
        result = call(limit=limit, cache=not no_cache, progress=progress)
    deliver(result, comparison_summary, output, as_json)
    if result.verdict.held is False:
        raise typer.Exit(1)


def _limits(*given: float | str | None) -> "Limits | None":
    """Return the limits from their values in the order of the fields; None if none is given.

    Raises:
        RecipeError: A limit is out of range.
    """
    from basis_sharing.results.comparison import Limits

    limits = {name: value for name, value in zip(Limits.model_fields, given, strict=True) if value is not None}
    return Limits.create(**limits) if limits else None
