"""``basis-sharing eval``."""

import json
from typing import Annotated

import typer


def evaluate(
    model: Annotated[str, typer.Argument(help="A model folder (dense or compressed), a .gguf file, or a hub id.")],
    text: Annotated[
        list[str] | None,
        typer.Option(
            help="Text to measure on, as for calibration; may be repeated (default: python-docs:heldout).",
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
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON on standard output.")] = False,
) -> None:
    """Measure perplexity and bits per byte of a model, dense or compressed.

    The text is tokenized once and cut into windows that do not overlap; every token of a window but the first is
    predicted. The same command gives comparable numbers for any two models:

        basis-sharing eval ./llama-20 --text wikitext2:wiki.test.raw
    """
    from basis_sharing.cli.console import out, progress_bars
    from basis_sharing.errors import RecipeError
    from basis_sharing.evaluation.perplexity import DEFAULT_TEXT, load, measure, prepare_text
    from basis_sharing.models.source import named_dtype
    from basis_sharing.recipe import DTYPES
    from basis_sharing.report.tables import perplexity_table

    if dtype not in DTYPES:
        raise RecipeError(f"unknown dtype {dtype!r}: choose from {', '.join(DTYPES)}.")
    for name, value, least in (("windows", windows, 1), ("length", length, 2)):
        if value is not None and value < least:
            raise RecipeError(f"--{name} {value} is too small: at least {least} is needed.")
    loaded, tokenizer = load(model, named_dtype(dtype))
    with progress_bars() as progress:
        results = [
            measure(
                loaded,
                prepare_text(loaded, tokenizer, spec, windows=windows, length=length),
                stage=f"evaluating {spec}",
                progress=progress,
            )
            for spec in text or [DEFAULT_TEXT]
        ]
    if as_json:
        print(json.dumps([result.model_dump() for result in results], indent=2))
        return
    out.print(perplexity_table(model, results))
