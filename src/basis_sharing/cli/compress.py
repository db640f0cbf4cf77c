"""``basis-sharing compress``."""

from pathlib import Path
from typing import Annotated

import typer

_CALIBRATION_HELP = (
    "Calibration text: python-docs (offline default), wikitext2, wikitext2:FILE, c4:FILE, chat:FILE, self, any .txt or "
    ".jsonl file (gzipped or not), or token windows in an .npz or .safetensors file."
)


def compress(
    model: Annotated[str, typer.Argument(help="A model folder, a .gguf file, or a hub id.", metavar="MODEL")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the compressed model.")],
    ratio: Annotated[
        str,
        typer.Option(metavar="RATIO", help="Fraction of the parameters to remove from the compressible projections."),
    ] = "0.2",
    method: Annotated[
        str, typer.Option(help="svd, fwsvd, asvd, svd-llm or basis-sharing.", show_default=True)
    ] = "basis-sharing",
    calibration: Annotated[str, typer.Option(help=_CALIBRATION_HELP)] = "python-docs",
    windows: Annotated[
        int, typer.Option(metavar="N", help="Number of calibration windows; more is better and slower.")
    ] = 256,
    length: Annotated[
        int | None, typer.Option(help="Tokens per window (default: 2048, or the model's limit).", show_default=False)
    ] = None,
    seed: Annotated[int, typer.Option(metavar="N", help="Seed of everything random.")] = 2023,
    group_size: Annotated[
        int | None,
        typer.Option(help="Layers that share a basis (default: 2 for basis-sharing, else 1).", show_default=False),
    ] = None,
    share: Annotated[
        str | None,
        typer.Option(
            help="Roles that share, e.g. q,gate,up, or a family whose table is used, e.g. mistral.  "
            "[default: the table of the model's family]",
            show_default=False,
        ),
    ] = None,
    refit: Annotated[
        str,
        typer.Option(help="Refit the coefficients on the compressed model: auto (from ratio 0.4 on), always, never."),
    ] = "auto",
    dtype: Annotated[
        str, typer.Option(help="Dtype of the model: auto (as in the checkpoint), float32, bfloat16, float16.")
    ] = "auto",
    calibration_dtype: Annotated[
        str, typer.Option(help="Dtype of the calibration pass: auto (bf16 where it is faster), float32, bfloat16.")
    ] = "auto",
    evaluate: Annotated[
        list[str] | None,
        typer.Option(help="Measure perplexity before and after on this text; may be repeated.", show_default=False),
    ] = None,
    evaluation_windows: Annotated[
        int | None, typer.Option(help="Use only the first windows of each text (default: all).", show_default=False)
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a model folder that exists.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")] = False,
) -> None:
    """Compress a model and write it as a folder that transformers loads.

    Takes 20 % away from a model, calibrated on Python's own documentation, and measures what it costs:

        basis-sharing compress ./llama -o ./llama-20 --ratio 0.2 --evaluate wikitext2:wiki.test.raw
    """
    from basis_sharing.cli.console import out, progress_bars
    from basis_sharing.pipeline import compress as run
    from basis_sharing.report.tables import compression_table

    with progress_bars() as progress:
        _, result = run(
            model,
            ratio=ratio,  # type: ignore[arg-type]  # the recipe parses and checks it
            output=output,
            overwrite=overwrite,
            progress=progress,
            method=method,
            calibration=calibration,
            windows=windows,
            length=length,
            seed=seed,
            group_size=group_size,
            share=share,
            refit=refit,
            dtype=dtype,
            calibration_dtype=calibration_dtype,
            evaluate=tuple(evaluate or ()),
            evaluation_windows=evaluation_windows,
        )
    if as_json:
        print(result.model_dump_json(indent=2))
        return
    out.print(compression_table(result))
    out.print(
        f"\n  written to {output}; load it with\n"
        f"  import basis_sharing; AutoModelForCausalLM.from_pretrained({str(output)!r})\n",
        highlight=False,
    )
