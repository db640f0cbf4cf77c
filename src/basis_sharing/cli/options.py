"""The options that several verbs have, each a view of one setting of the recipe."""

from pathlib import Path
from typing import Annotated, Any

import typer

from basis_sharing.errors import RecipeError
from basis_sharing.recipe.model import DTYPES
from basis_sharing.recipe.presets import PRESETS
from basis_sharing.recipe.recipe import Recipe

_CALIBRATION = (
    "Calibration text: python-docs (on every machine), wikitext2, wikitext2:FILE, c4:FILE, chat:FILE, self, any .txt "
    "or .jsonl file (gzipped or not), or token windows in an .npz or .safetensors file; several, in equal parts, as "
    "'A + B'"
)


_TASKS = "Zero-shot tasks (of the extra eval)"


def option(help_text: str, setting: str, metavar: str, default: str | None = None) -> Any:
    """Return an option whose help names the default that the recipe gives it."""
    shown = Recipe.model_fields[setting].default if default is None else default
    return typer.Option(help=f"{help_text} (default: {shown}).", metavar=metavar, show_default=False)


def _target(help_text: str, metavar: str) -> Any:
    return typer.Option(help=help_text, metavar=metavar, show_default=False, rich_help_panel="Target (one of)")


def _planner(help_text: str, flag: str) -> Any:
    return typer.Option(flag, help=help_text, show_default=False, rich_help_panel="Planner (method auto)")


def _tasks(help_text: str, metavar: str) -> Any:
    return typer.Option(help=help_text, metavar=metavar, show_default=False, rich_help_panel=_TASKS)


def check_task_options(tasks: str | None, task_data: Path | None, limit: int | None, no_cache: bool) -> None:
    """Make sure that the options about tasks come with tasks.

    Raises:
        RecipeError: They do not, or the limit is too small.
    """
    if tasks is None and (task_data is not None or limit is not None or no_cache):
        raise RecipeError("--task-data, --limit and --no-cache are about tasks: name some with --tasks.")
    if limit is not None and limit < 1:
        raise RecipeError(f"--limit {limit} is too small: at least 1 is needed.")


def limit(help_text: str, metavar: str) -> Any:
    """Return an option that limits how far a compressed model may be from the original."""
    return typer.Option(help=help_text, metavar=metavar, show_default=False, rich_help_panel="Limits")


Ratio = Annotated[
    str | None, _target("Fraction of the parameters to remove from the compressible projections, e.g. 0.3.", "R")
]
MaxParameters = Annotated[str | None, _target("Parameters the whole model may have, e.g. 100M.", "N")]
MaxBytes = Annotated[str | None, _target("Bytes the weights of the whole model may take, e.g. 1.5GiB.", "N")]
MaxFlops = Annotated[
    str | None, _target("Floating point operations per token for projections and output head, e.g. 180M.", "N")
]
MaxPerplexityIncrease = Annotated[
    str | None,
    _target(
        "How much the perplexity may rise, e.g. 5%; one plan is measured on the first --evaluate text (or on "
        "python-docs:heldout) to scale the prediction.",
        "P",
    ),
]
NoGradients = Annotated[
    bool,
    _planner("Plan without a backward pass: quicker, coarser predictions, usually a worse result.", "--no-gradients"),
]
NoSharing = Annotated[bool, _planner("Never share a basis between layers.", "--no-sharing")]
NoJointRoles = Annotated[
    bool, _planner("Never share a basis between roles that read one input (q, k, v; gate, up).", "--no-joint-roles")
]
RankMultiple = Annotated[
    int | None,
    typer.Option(
        help="Processes are multiples of this, e.g. 8, 16 or 64, as hardware likes them (default: 1).",
        metavar="N",
        show_default=False,
        rich_help_panel="Planner (method auto)",
    ),
]
Roles = Annotated[
    str | None, option("Compress the projections of these roles only, e.g. gate,up,down", "roles", "ROLES", "all")
]
Method = Annotated[str | None, option(f"One of {', '.join(PRESETS)}", "method", "NAME")]
Calibration = Annotated[str | None, option(_CALIBRATION, "calibration", "TEXT")]
Windows = Annotated[int | None, option("Number of calibration windows; more is better and slower", "windows", "N")]
Length = Annotated[
    int | None, option("Tokens per window", "length", "N", "2048, or the model's limit where that is smaller")
]
Seed = Annotated[int | None, option("Seed of everything random", "seed", "N")]
FormOption = Annotated[
    str | None,
    option(
        "How factors are stored: plain, as published, or pivoted, which reaches a higher rank in the same size",
        "form",
        "FORM",
        "pivoted for auto, else plain",
    ),
]
Refine = Annotated[
    float | None,
    option(
        "Train the factors of each block towards the original's states for so many minutes, about",
        "refine",
        "MINUTES",
        "no",
    ),
]
Dtype = Annotated[
    str | None,
    option(f"Dtype of the model, one of {', '.join(DTYPES)}; auto: as in the checkpoint", "dtype", "DTYPE"),
]
CalibrationDtype = Annotated[
    str | None, option("Dtype of the calibration pass; auto: bf16 where it is faster", "calibration_dtype", "DTYPE")
]
EvaluationWindows = Annotated[
    int | None, option("Use only the first windows of each text", "evaluation_windows", "N", "all")
]
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
MaxKl = Annotated[float | None, limit("Most nats per token that the mean KL divergence may reach, e.g. 0.05.", "NATS")]
MaxIncrease = Annotated[
    str | None, limit("How much the perplexity may be above the original's (the first model's), e.g. 5%.", "P")
]
MinAgreement = Annotated[
    str | None, limit("Least share of positions where both find the same token most probable, e.g. 90%.", "P")
]
Work = Annotated[
    Path | None,
    typer.Option(
        help="Keep what is measured (second moments, loss curves) in this folder and take it from there: another ratio "
        "of the same model and text needs no calibration. Takes a few times the size of the model.",
        metavar="DIR",
        show_default=False,
    ),
]
Device = Annotated[
    str | None,
    typer.Option(
        help="Where blocks run and matrices are decomposed, one at a time: auto, cpu, cuda or mps (default: auto).",
        metavar="DEVICE",
        show_default=False,
    ),
]
MaxMemory = Annotated[
    str | None,
    typer.Option(
        help="Memory this run may take, e.g. 6GiB (default: most of what is free). Weights used from their files do "
        "not count: the system can drop their pages.",
        metavar="N",
        show_default=False,
    ),
]
RecipeFile = Annotated[
    Path | None,
    typer.Option("--recipe", help="A YAML or JSON file with the settings above; flags go before it.", metavar="FILE"),
]


def settings_from(recipe: Path | None, **flags: Any) -> dict[str, Any]:
    """Return the settings of a recipe file, with those flags before it that were given.

    Raises:
        RecipeError: A setting is wrong; found before torch is imported.
    """
    settings = Recipe.settings_in(recipe) if recipe is not None else {}
    negated = {"no_gradients": "gradients", "no_sharing": "across_depth", "no_joint_roles": "across_roles"}
    for flag, setting in negated.items():
        if flags.pop(flag, False):
            settings[setting] = False
    settings |= {name: value for name, value in flags.items() if value is not None}
    Recipe.create(**settings)
    return settings
