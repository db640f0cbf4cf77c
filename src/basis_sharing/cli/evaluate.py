"""``basis-sharing eval``."""

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from basis_sharing.cli import options

if TYPE_CHECKING:
    from basis_sharing.results.measures import Perplexity
    from basis_sharing.run.progress import ProgressCallback


def evaluate(
    model: Annotated[str, typer.Argument(help="A model folder (dense or compressed), a .gguf file, or a hub id.")],
    text: Annotated[
        list[str] | None,
        typer.Option(
            help="Text to measure on, as for calibration; may be repeated (default: python-docs:heldout, or none "
            "with --tasks).",
            show_default=False,
        ),
    ] = None,
    windows: Annotated[
        int | None, typer.Option(help="Use only the first windows (default: all).", show_default=False)
    ] = None,
    length: Annotated[
        int | None, typer.Option(help="Tokens per window (default: 2048, or the model's limit).", show_default=False)
    ] = None,
    dtype: Annotated[
        str, typer.Option(help="Dtype to run in: auto (as in the checkpoint), float32, bfloat16, float16.")
    ] = "auto",
    tasks: options.Tasks = None,
    task_data: options.TaskData = None,
    limit: options.TaskLimit = None,
    no_cache: options.NoCache = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON on standard output.")] = False,
) -> None:
    """Measure perplexity and bits per byte of a model, dense or compressed, or its accuracy on zero-shot tasks.

    The text is tokenized once and cut into windows that do not overlap; every token of a window but the first is
    predicted. The same command gives comparable numbers for any two models:

        basis-sharing eval ./llama-20 --text wikitext2:wiki.test.raw

        basis-sharing eval ./llama-20 --tasks paper,boolq --task-data ./zeroshot
    """
    from basis_sharing.errors import RecipeError
    from basis_sharing.recipe.model import DTYPES

    if dtype not in DTYPES:
        raise RecipeError(f"unknown dtype {dtype!r}: choose from {', '.join(DTYPES)}.")
    for name, value, least in (("windows", windows, 1), ("length", length, 2)):
        if value is not None and value < least:
            raise RecipeError(f"--{name} {value} is too small: at least {least} is needed.")
    options.check_task_options(tasks, task_data, limit, no_cache)
    if tasks is not None and not text and (windows is not None or length is not None):
        raise RecipeError("--windows and --length are about a text: name one with --text.")

    from basis_sharing.cli.console import out, progress_bars
    from basis_sharing.evaluation.perplexity import DEFAULT_TEXT
    from basis_sharing.models.source import named_dtype
    from basis_sharing.reports.tables.perplexity import perplexity_table
    from basis_sharing.reports.terminal import printable

    texts = text or ([DEFAULT_TEXT] if tasks is None else [])
    scored = None
    with progress_bars() as progress:
        if tasks is not None:  # first, because a wrong name or file shows at once
            from basis_sharing.evaluation.score_cache import default_folder
            from basis_sharing.evaluation.tasks import evaluate_tasks

            scored = evaluate_tasks(
                model,
                tasks.split(","),
                data=task_data,
                limit=limit,
                dtype=named_dtype(dtype),
                cache=None if no_cache else default_folder(),
                progress=progress,
            )
        measured = _perplexities(model, texts, windows, length, named_dtype(dtype), progress) if texts else []
    if as_json:
        perplexities = [result.model_dump() for result in measured]
        if scored is None:
            print(json.dumps(perplexities, indent=2))
        elif measured:
            print(json.dumps({"perplexity": perplexities, "tasks": scored.model_dump(mode="json")}, indent=2))
        else:
            print(scored.model_dump_json(indent=2))
        return
    if measured:
        out.print(printable(perplexity_table(model, measured)))
    if scored is not None:
        from basis_sharing.reports.tables.tasks import scores_table

        out.print(printable(scores_table(scored)))


def _perplexities(
    model: str,
    texts: list[str],
    windows: int | None,
    length: int | None,
    dtype: Any,
    progress: "ProgressCallback",
) -> "list[Perplexity]":
    from basis_sharing.evaluation.perplexity import load, measure, prepare_text

    loaded, tokenizer = load(model, dtype)
    return [
        measure(
            loaded,
            prepare_text(loaded, tokenizer, spec, windows=windows, length=length),
            stage=f"evaluating {spec}",
            progress=progress,
        )
        for spec in texts
    ]
