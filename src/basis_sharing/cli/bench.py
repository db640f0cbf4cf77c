"""``basis-sharing bench``."""

from pathlib import Path
from typing import Annotated

import typer


def bench(
    models: Annotated[
        list[str],
        typer.Argument(
            help="Model folders (dense or compressed), .gguf files, or hub ids; the first is what the others are "
            "compared with.",
            metavar="MODEL...",
        ),
    ],
    prompt_tokens: Annotated[
        int | None,
        typer.Option(
            help="Tokens of a prompt (default: 512, or what the models can read).", metavar="N", show_default=False
        ),
    ] = None,
    new_tokens: Annotated[int, typer.Option(help="Tokens decoded after it.", metavar="N")] = 32,
    batch_sizes: Annotated[str, typer.Option(help="Sequences decoded at once.", metavar="N,N")] = "1,8",
    repeats: Annotated[int, typer.Option(help="Least number of repeats, after a warm-up.", metavar="N")] = 5,
    precision: Annotated[
        str,
        typer.Option(
            help="Repeat, at most four times as often, until twice the standard error of every speed is so small; "
            "off: do not.",
            metavar="PERCENT",
        ),
    ] = "2%",
    compiled: Annotated[
        bool, typer.Option("--compile", help="Measure torch.compile with a static cache as well; takes minutes more.")
    ] = False,
    dtype: Annotated[
        str, typer.Option(help="Dtype to run in: auto (as in the checkpoint), float32, bfloat16, float16.")
    ] = "auto",
    device: Annotated[str, typer.Option(help="auto (cuda, else mps, else cpu), cpu, cuda, mps.")] = "auto",
    threads: Annotated[
        int | None,
        typer.Option(
            help="Threads on the CPU; fewer than processors is steadier on a busy machine (default: PyTorch's choice).",
            metavar="N",
            show_default=False,
        ),
    ] = None,
    no_memory: Annotated[bool, typer.Option("--no-memory", help="Do not measure peaks of memory.")] = False,
    seed: Annotated[int, typer.Option(help="Seed of the prompts, which are random tokens.", metavar="N")] = 0,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File for the results (JSON).", metavar="FILE")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that exists.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON on standard output.")] = False,
) -> None:
    """Measure how fast models are and how much memory they need, side by side.

    Prefill, time to the first token, decoding, peaks of memory, bytes on disk. The models take turns after every
    forward pass, so that the comparison holds on a busy machine; beside every speed stands the one that less work alone
    would give:

        basis-sharing bench ./llama ./llama-20
    """
    sizes = _batch_sizes(batch_sizes)

    from basis_sharing.cli.console import out, progress_bars
    from basis_sharing.reports.tables.benchmark import benchmark_tables
    from basis_sharing.reports.terminal import printable
    from basis_sharing.run.files import check_files, write_file
    from basis_sharing.verbs.bench import bench as run

    if output is not None:
        check_files([output], overwrite=overwrite)
    with progress_bars() as progress:
        result = run(
            models,
            prompt_tokens=prompt_tokens,
            new_tokens=new_tokens,
            batch_sizes=sizes,
            repeats=repeats,
            precision=None if precision == "off" else precision,
            compiled=compiled,
            memory=not no_memory,
            dtype=dtype,
            device=device,
            threads=threads,
            seed=seed,
            progress=progress,
        )
    if output is not None:
        write_file(output, result.write)
    if as_json:
        print(result.model_dump_json(indent=2))
        return
    out.print(printable(*benchmark_tables(result)))
    if output is not None:
        out.print(f"\n  written to {output}\n", highlight=False)


def _batch_sizes(text: str) -> list[int]:
    from basis_sharing.errors import RecipeError

    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise RecipeError(
            f"--batch-sizes {text}: give whole numbers with commas between them, e.g. --batch-sizes 1,8."
        ) from None
