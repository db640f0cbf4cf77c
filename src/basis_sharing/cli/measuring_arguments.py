"""The options of the verbs that measure models, in addition to those of :mod:`~basis_sharing.cli.arguments`."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from basis_sharing.cli import arguments
from basis_sharing.errors import RecipeError
from basis_sharing.recipe.model import DTYPES, DtypeName


def _optional(help_text: str, metavar: str | None = None) -> Any:
    """Return an option without a shown default; its help text describes the default."""
    return typer.Option(help=help_text, metavar=metavar, show_default=False)


_TASKS = "Zero-shot tasks (of the extra eval)"


def _tasks(help_text: str, metavar: str) -> Any:
    return typer.Option(help=help_text, metavar=metavar, show_default=False, rich_help_panel=_TASKS)


def _renamed(old: str, new: str) -> Callable[[str | None], None]:
    """Return a callback that refuses an option and names its replacement."""

    def refuse(value: str | None) -> None:
        if value is not None:
            raise RecipeError(f"{old} is called {new} here: --windows are the windows a model is calibrated on.")

    return refuse


def _dtype(name: str) -> str:
    """Return the name of a dtype.

    Raises:
        RecipeError: There is no such dtype.
    """
    if name not in DTYPES:
        raise RecipeError(f"unknown dtype {name!r}: choose from {', '.join(DTYPES)}.")
    return name


Model = Annotated[str, typer.Argument(help="A model folder (dense or compressed), a .gguf file, or a hub id.")]
Texts = Annotated[
    list[str] | None,
    _optional(
        "Text to measure on, as for calibration; may be repeated (default: python-docs:heldout, or none with --tasks)."
    ),
]
EvaluationWindows = Annotated[int | None, _optional("Use only the first windows of each text (default: all).", "N")]
RenamedWindows = Annotated[
    str | None,
    typer.Option("--windows", hidden=True, callback=_renamed("--windows", "--evaluation-windows")),
]
Length = Annotated[int | None, _optional("Tokens per window (default: 2048, or the model's limit).", "N")]
Dtype = Annotated[
    DtypeName,
    typer.Option(
        help=f"Dtype to load models in, one of {', '.join(DTYPES)}; auto: as in the checkpoint.",
        metavar="DTYPE",
        parser=_dtype,
    ),
]
Device = Annotated[
    str | None,
    _optional("Where models run: auto (cuda, else mps, else cpu), cpu, cuda, mps (default: auto).", "DEVICE"),
]
ResultFile = Annotated[Path | None, typer.Option("--output", "-o", help="File for the results (JSON).", metavar="FILE")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what exists at --output.")]

Tasks = Annotated[
    str | None,
    _tasks(
        "Tasks to score, separated by commas: paper (the seven of the paper), openbookqa, arc_easy, winogrande, "
        "hellaswag, arc_challenge, piqa, mathqa, boolq, lambada_openai, or any of lm-eval's.",
        "TASK,...",
    ),
]
TaskData = Annotated[
    Path | None,
    _tasks("Folder with the examples of the nine tasks above (default: lm-eval fetches them from the hub).", "DIR"),
]
TaskLimit = Annotated[
    int | None,
    typer.Option(
        "--limit",
        help="Score only the first examples of each task (default: all).",
        metavar="N",
        show_default=False,
        rich_help_panel=_TASKS,
    ),
]
NoCache = Annotated[
    bool,
    typer.Option(
        "--no-cache", help="Measure again what an earlier run has measured, and keep nothing.", rich_help_panel=_TASKS
    ),
]

ComparedModels = Annotated[
    list[str],
    typer.Argument(
        help="Two models: folders (dense or compressed), .gguf files, or hub ids; the second one is judged. With "
        "--baseline the second one alone is enough.",
        metavar="A B",
    ),
]
ComparedText = Annotated[
    str | None, _optional("Text to compare on, as for calibration (default: python-docs:heldout, or the baseline's).")
]
Prompts = Annotated[
    Path | None, _optional("File of prompts that both continue, one a line (default: three of ours).", "FILE")
]
NewTokens = Annotated[int | None, _optional("Most tokens to write after each prompt (default: 40).", "N")]
Disagreements = Annotated[
    int, typer.Option(help="Number of positions to show where the models disagree most.", metavar="N")
]
MaxDrift = Annotated[
    str | None, arguments.limit("How much the perplexity of B may be above that in the baseline, e.g. 1%.", "P")
]
Baseline = Annotated[
    Path | None,
    _optional(
        "Measure B again as in this file, written by an earlier --output; text, windows, dtype, prompts and limits are "
        "taken from it.",
        "FILE",
    ),
]

BenchmarkedModels = Annotated[
    list[str],
    typer.Argument(
        help="Model folders (dense or compressed), .gguf files, or hub ids; the first is what the others are compared "
        "with.",
        metavar="MODEL...",
    ),
]
PromptTokens = Annotated[int | None, _optional("Tokens of a prompt (default: 512, or what the models can read).", "N")]
DecodedTokens = Annotated[int, typer.Option(help="Tokens decoded after the prompt.", metavar="N")]
BatchSizes = Annotated[str, typer.Option(help="Sequences decoded at once.", metavar="N,N")]
Repeats = Annotated[int, typer.Option(help="Least number of repeats, after a warm-up.", metavar="N")]
Precision = Annotated[
    str,
    typer.Option(
        help="Repeat, at most four times as often, until twice the standard error of every speed is so small; off: do "
        "not.",
        metavar="PERCENT",
    ),
]
Compile = Annotated[
    bool | None,
    typer.Option(
        "--compile/--no-compile",
        help="Measure torch.compile as well, with CUDA graphs on CUDA, or let vLLM compile; takes minutes more "
        "(default: if PyTorch finds a compiler).",
        show_default=False,
    ),
]
Engine = Annotated[
    str,
    typer.Option(
        help="What runs the models: pytorch, vllm where it is installed, or a runtime (onnx, openvino), which runs "
        "folders of basis-sharing export.",
        metavar="ENGINE",
    ),
]
Threads = Annotated[
    int | None,
    _optional(
        "Threads on the CPU; fewer than processors is steadier on a busy machine (default: PyTorch's choice).", "N"
    ),
]
NoMemory = Annotated[bool, typer.Option("--no-memory", help="Do not measure peaks of memory.")]
PromptSeed = Annotated[int, typer.Option(help="Seed of the prompts, which are random tokens.", metavar="N")]

CompressedFolder = Annotated[
    Path, typer.Argument(help="A folder that `basis-sharing compress` wrote.", metavar="FOLDER")
]
Page = Annotated[Path, typer.Option("--output", "-o", help="The HTML file.", metavar="FILE")]
Results = Annotated[
    list[Path] | None,
    _optional(
        "Results about the same model, of compare -o, bench -o or evaluate --json, rollout.json of a rollout, or "
        "basis_sharing.json of another compression of the same original, which becomes a point of the curve; may be "
        "repeated.",
        "FILE",
    ),
]
Figures = Annotated[Path | None, _optional("Write the pictures into this folder too, as SVG and PNG.", "FOLDER")]
ExportFolder = Annotated[Path, typer.Option("--output", "-o", help="Folder for the export.", metavar="FOLDER")]
