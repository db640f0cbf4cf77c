"""``basis-sharing compress``."""

from pathlib import Path
from typing import Annotated, Any

import typer

from basis_sharing.presets import PRESETS
from basis_sharing.recipe import DTYPES, Recipe

_CALIBRATION = (
    "Calibration text: python-docs (on every machine), wikitext2, wikitext2:FILE, c4:FILE, chat:FILE, self, any .txt "
    "or .jsonl file (gzipped or not), or token windows in an .npz or .safetensors file"
)


def _option(help_text: str, setting: str, metavar: str, default: str | None = None) -> Any:
    """Return an option whose help names the default that the recipe gives it."""
    shown = Recipe.model_fields[setting].default if default is None else default
    return typer.Option(help=f"{help_text} (default: {shown}).", metavar=metavar, show_default=False)


def compress(
    model: Annotated[str, typer.Argument(help="A model folder, a .gguf file, or a hub id.", metavar="MODEL")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the compressed model.", metavar="DIR")],
    ratio: Annotated[
        str | None,
        typer.Option(
            help="Fraction of the parameters to remove from the compressible projections (required).",
            metavar="R",
            show_default=False,
        ),
    ] = None,
    method: Annotated[str | None, _option(f"One of {', '.join(PRESETS)}", "method", "NAME")] = None,
    calibration: Annotated[str | None, _option(_CALIBRATION, "calibration", "TEXT")] = None,
    windows: Annotated[
        int | None, _option("Number of calibration windows; more is better and slower", "windows", "N")
    ] = None,
    length: Annotated[
        int | None, _option("Tokens per window", "length", "N", "2048, or the model's limit where that is smaller")
    ] = None,
    seed: Annotated[int | None, _option("Seed of everything random", "seed", "N")] = None,
    group_size: Annotated[
        int | None, _option("Layers that share a basis", "group_size", "N", "2 for basis-sharing, else 1")
    ] = None,
    share: Annotated[
        str | None,
        _option(
            "Roles that share, e.g. q,gate,up, or a family whose table is used, e.g. mistral",
            "share",
            "ROLES",
            "the table of the model's family",
        ),
    ] = None,
    form: Annotated[
        str | None,
        _option(
            "How factors are stored: plain, as published, or pivoted, which reaches a higher rank in the same size",
            "form",
            "FORM",
        ),
    ] = None,
    refit: Annotated[
        str | None,
        _option(
            "Refit the coefficients on the compressed model: auto (as the method prescribes: basis-sharing from ratio "
            "0.4 on), always, never",
            "refit",
            "WHEN",
        ),
    ] = None,
    dtype: Annotated[
        str | None,
        _option(f"Dtype of the model, one of {', '.join(DTYPES)}; auto: as in the checkpoint", "dtype", "DTYPE"),
    ] = None,
    calibration_dtype: Annotated[
        str | None,
        _option("Dtype of the calibration pass; auto: bf16 where it is faster", "calibration_dtype", "DTYPE"),
    ] = None,
    evaluate: Annotated[
        list[str] | None,
        _option("Measure perplexity before and after on this text; may be repeated", "evaluate", "TEXT", "none"),
    ] = None,
    evaluation_windows: Annotated[
        int | None, _option("Use only the first windows of each text", "evaluation_windows", "N", "all")
    ] = None,
    recipe: Annotated[
        Path | None,
        typer.Option(help="A YAML or JSON file with the settings above; flags go before it.", metavar="FILE"),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a model folder that exists.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")] = False,
) -> None:
    """Compress a model and write it as a folder that transformers loads.

    Takes 20 % away from a model, calibrated on Python's own documentation, and measures what it costs:

        basis-sharing compress ./llama -o ./llama-20 --ratio 0.2 --evaluate wikitext2:wiki.test.raw
    """
    from basis_sharing.errors import RecipeError

    flags = {
        "ratio": ratio,
        "method": method,
        "calibration": calibration,
        "windows": windows,
        "length": length,
        "seed": seed,
        "group_size": group_size,
        "share": share,
        "form": form,
        "refit": refit,
        "dtype": dtype,
        "calibration_dtype": calibration_dtype,
        "evaluate": tuple(evaluate) if evaluate else None,
        "evaluation_windows": evaluation_windows,
    }
    settings = Recipe.settings_in(recipe) if recipe is not None else {}
    settings |= {name: value for name, value in flags.items() if value is not None}
    if "ratio" not in settings:
        raise RecipeError("the ratio is missing: pass --ratio with the fraction of parameters to remove, e.g. 0.2.")
    Recipe.create(**settings)  # a wrong setting is found before torch is imported

    from basis_sharing.cli.console import out, progress_bars
    from basis_sharing.pipeline import compress as run
    from basis_sharing.report.tables import compression_table

    with progress_bars() as progress:
        _, result = run(model, output=output, overwrite=overwrite, progress=progress, **settings)
    if as_json:
        print(result.model_dump_json(indent=2))
        return
    out.print(compression_table(result))
    out.print(
        f"\n  written to {output}; load it with\n"
        f"  import basis_sharing; AutoModelForCausalLM.from_pretrained({str(output)!r})\n",
        highlight=False,
    )
