"""``basis-sharing compare``."""

from pathlib import Path
from typing import Annotated

import typer

from basis_sharing.cli import options


def compare(
    models: Annotated[
        list[str],
        typer.Argument(
            help="Two models: folders (dense or compressed), .gguf files, or hub ids; the second one is judged. With "
            "--baseline the second one alone is enough.",
            metavar="A B",
        ),
    ],
    text: Annotated[
        str | None,
        typer.Option(
            help="Text to compare on, as for calibration (default: python-docs:heldout, or the baseline's).",
            show_default=False,
        ),
    ] = None,
    windows: Annotated[
        int | None, typer.Option(help="Use only the first windows (default: all).", show_default=False)
    ] = None,
    length: Annotated[
        int | None, typer.Option(help="Tokens per window (default: 2048, or the models' limit).", show_default=False)
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            help="File of prompts that both continue, one a line (default: three of ours).",
            metavar="FILE",
            show_default=False,
        ),
    ] = None,
    new_tokens: Annotated[
        int | None, typer.Option(help="Most tokens to write after each prompt (default: 40).", show_default=False)
    ] = None,
    disagreements: Annotated[
        int, typer.Option(help="Number of positions to show where the models disagree most.")
    ] = 10,
    dtype: Annotated[
        str | None,
        typer.Option(
            help="Dtype to run in: auto (as in the checkpoint), float32, bfloat16, float16 (default: auto).",
            show_default=False,
        ),
    ] = None,
    max_kl: options.MaxKl = None,
    max_perplexity_increase: options.MaxIncrease = None,
    min_agreement: options.MinAgreement = None,
    max_drift: Annotated[
        str | None, options.limit("How much the perplexity of B may be above that in the baseline, e.g. 1%.", "P")
    ] = None,
    tasks: options.Tasks = None,
    task_data: options.TaskData = None,
    limit: options.TaskLimit = None,
    no_cache: options.NoCache = False,
    baseline: Annotated[
        Path | None,
        typer.Option(
            help="Measure B again as in this file, written by an earlier --output; text, windows, dtype, prompts and "
            "limits are taken from it.",
            metavar="FILE",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Write the comparison to this file (JSON).", metavar="FILE"),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that exists.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the comparison as JSON on standard output.")] = False,
) -> None:
    """Compare two models: perplexity, agreement, where they disagree most, and what they write.

    One sentence at the end is the answer. Exit code 0 if every limit is held (or none is set), 1 if one is broken:

        basis-sharing compare ./llama ./llama-20 --max-perplexity-increase 5% --min-agreement 90% -o results.json

    Later, or on another machine, the compressed model alone can be measured again and held against the same limits:

        basis-sharing compare --baseline results.json ./llama-20 --max-drift 1%
    """
    from basis_sharing.errors import RecipeError
    from basis_sharing.recipe.model import DTYPES
    from basis_sharing.results.comparison import Comparison, Limits

    if len(models) > 2 or (len(models) == 1 and baseline is None):
        raise RecipeError(f"two models are needed, and {len(models)} given: basis-sharing compare ORIGINAL COMPRESSED.")
    if dtype is not None and dtype not in DTYPES:
        raise RecipeError(f"unknown dtype {dtype!r}: choose from {', '.join(DTYPES)}.")
    least = (
        ("windows", windows, 1),
        ("length", length, 2),
        ("new-tokens", new_tokens, 1),
        ("disagreements", disagreements, 0),
    )
    for name, value, smallest in least:
        if value is not None and value < smallest:
            raise RecipeError(f"--{name} {value} is too small: at least {smallest} is needed.")
    options.check_task_options(tasks, task_data, limit, no_cache)
    fixed = {
        "tasks": tasks,
        "windows": windows,
        "length": length,
        "dtype": dtype,
        "prompts": prompts,
        "new-tokens": new_tokens,
    }
    for name, given in fixed.items():
        if baseline is not None and given is not None:
            raise RecipeError(f"--{name} has no meaning with --baseline, which says what is measured: leave one out.")
    given_limits = {
        "max_kl": max_kl,
        "max_perplexity_increase": max_perplexity_increase,
        "min_agreement": min_agreement,
        "max_drift": max_drift,
    }
    limits = Limits.create(**{name: value for name, value in given_limits.items() if value is not None})
    stored = None if baseline is None else Comparison.read(baseline)

    from basis_sharing.cli.console import out, progress_bars
    from basis_sharing.evaluation.perplexity import DEFAULT_TEXT
    from basis_sharing.evaluation.samples import DEFAULT_PROMPTS, NEW_TOKENS, read_prompts
    from basis_sharing.evaluation.score_cache import default_folder
    from basis_sharing.models.source import named_dtype
    from basis_sharing.reports.tables.comparison import comparison_summary
    from basis_sharing.reports.terminal import printable
    from basis_sharing.run.files import check_files, write_file
    from basis_sharing.verbs.compare import compare as run
    from basis_sharing.verbs.recheck import recheck

    if output is not None:
        check_files([output], overwrite=overwrite)
    with progress_bars() as progress:
        if stored is not None:
            result = recheck(
                models[-1],
                stored,
                original=models[0] if len(models) == 2 else None,
                source=str(baseline),
                text=text,
                limits=limits if limits.given else None,
                disagreements=disagreements,
                progress=progress,
            )
        else:
            result = run(
                *models,
                text=text or DEFAULT_TEXT,
                prompts=DEFAULT_PROMPTS if prompts is None else read_prompts(prompts),
                limits=limits,
                windows=windows,
                length=length,
                dtype=None if dtype is None else named_dtype(dtype),
                new_tokens=new_tokens or NEW_TOKENS,
                disagreements=disagreements,
                tasks=tasks.split(",") if tasks is not None else (),
                task_data=task_data,
                task_limit=limit,
                task_cache=None if no_cache else default_folder(),
                progress=progress,
            )
    if output is not None:
        write_file(output, result.write)
    if as_json:
        print(result.model_dump_json(indent=2))
    else:
        out.print(printable(*comparison_summary(result)))
        if output is not None:
            out.print(f"  written to {output}\n", highlight=False, markup=False)
    if result.verdict.held is False:
        raise typer.Exit(1)
