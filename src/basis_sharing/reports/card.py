"""The model card of a compressed folder: what the Hugging Face Hub shows about it."""

from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from basis_sharing.reports.markdown import markdown
from basis_sharing.reports.tables.compression import compressed_perplexity_table
from basis_sharing.reports.tables.sizes import size_table
from basis_sharing.results.compression import LANGUAGE_MODELS, RESULT_FILE, CompressionResult
from basis_sharing.results.words import (
    asked_and_reached,
    calibrated_on,
    condensed,
    expectation,
    groups_and_shared,
    how_to_load,
    how_to_repeat,
    recovery_line,
    repairs,
    short_name,
    was_trained,
    without_folders,
)
from basis_sharing.run.files import output_errors

if TYPE_CHECKING:
    from basis_sharing.models.source import ModelSource

CARD_FILE = "README.md"
_TASKS = {LANGUAGE_MODELS: "text-generation", "AutoModelForImageTextToText": "image-text-to-text"}
_HERE = "path/to/this/folder"
_PAPER = "[Basis Sharing](https://arxiv.org/abs/2410.03765)"


def write_result(folder: Path, source: "ModelSource | None", result: CompressionResult) -> None:
    """Write the result of a compression and its model card into the folder of the compressed model.

    Args:
        folder: The folder.
        source: Source of the original; None: it was in memory.
        result: The result of the compression.

    Raises:
        OutputError: The disk is full or the folder cannot be written.
    """
    hub_id = source.given if source is not None and source.kind == "hub" else None
    with output_errors(folder):
        result.write(folder / RESULT_FILE)
        (folder / CARD_FILE).write_text(model_card(result, hub_id=hub_id), encoding="utf-8")


def model_card(result: CompressionResult, *, hub_id: str | None) -> str:
    """Return the model card of a compressed model, as Markdown with the hub's front matter.

    It does not depend on the name of the folder, which may be renamed and uploaded.

    Args:
        result: The result of the compression.
        hub_id: Id of the original on the hub; None if it came from a file or from memory.
    """
    original = hub_id or short_name(result.model)
    removed = 1 - result.after.parameters / result.before.parameters
    return "\n".join(
        [
            "---",
            yaml.safe_dump(_front_matter(result, hub_id), sort_keys=False) + "---",
            "",
            f"# {short_name(original)} with {100 * removed:.1f} % fewer parameters",
            "",
            f"A smaller form of `{original}`, made with basis-sharing {result.versions['basis-sharing']}"
            f"{'' if was_trained(result) else ', without fine-tuning'}. Weight matrices are products of a basis, "
            f"which several of them may share, and coefficients of their own ({_PAPER}).",
            "",
            "## Size",
            "",
            markdown(size_table(result).mapped(without_folders), title=False),
            "",
            "## Quality",
            "",
            *_quality(result),
            "",
            "## Load it",
            "",
            *_loading(result),
            "",
            "## How it was made",
            "",
            *_making(result),
            "",
            "## Limits and licence",
            "",
            *_limits(result, original, hub_id),
            "",
        ]
    )


def _front_matter(result: CompressionResult, hub_id: str | None) -> dict[str, object]:
    task = _TASKS.get(result.loader, "any-to-any")
    front: dict[str, object] = {"library_name": "transformers", "pipeline_tag": task}
    if hub_id is not None:
        front |= {"base_model": hub_id, "base_model_relation": "quantized"}
    return front | {"tags": ["basis-sharing", "basis_sharing", "compression", "low-rank"]}


def _quality(result: CompressionResult) -> list[str]:
    table = compressed_perplexity_table(result)
    if table is None:
        lines = ["Not measured when the model was made. Measure before you use it: `basis-sharing evaluate`."]
    else:
        lines = [markdown(table.mapped(without_folders), title=False)]
    if result.prediction is not None:
        lines += ["", without_folders(expectation(result.prediction))]
    return lines


def _loading(result: CompressionResult) -> list[str]:
    installed, bare = how_to_load(result, _HERE)
    return [
        "With the Python package basis-sharing installed:",
        "",
        f"```python\n{installed}```",
        "",
        "Without it, with the code that lies in this folder (read it first):",
        "",
        f"```python\n{bare}```",
    ]


def _making(result: CompressionResult) -> list[str]:
    lines = [without_folders(asked_and_reached(result)), f"Groups of projections: {groups_and_shared(result)}."]
    text = calibrated_on(result)
    if text is not None:
        lines.append(f"Calibrated on {without_folders(text)}.")
    lines += map(without_folders, repairs(result))
    again = recovery_line(result, "DIR", "RECOVERED")
    lines += [
        "",
        f"```\n{how_to_repeat(result, published=True)}\n{f'{again}{chr(10)}' if again else ''}```",
        "",
        "Versions: " + ", ".join(f"{package} {version}" for package, version in sorted(result.versions.items())) + ". "
        "All settings, groups and ranks are in `basis_sharing.json`.",
    ]
    return lines


def _limits(result: CompressionResult, original: str, hub_id: str | None) -> list[str]:
    lines = [
        "- Perplexity is a mean over one kind of text. Compare the answers of both models on your own tasks before "
        "you replace one by the other; neither safety nor rare knowledge was tested.",
        "- Removing parameters saves memory; whether it saves time depends on the hardware.",
        f"- The licence and the terms of use of the original, `{original}`, apply to this model too, and so do the "
        "limits its own card names.",
    ]
    if hub_id is None:
        lines.append("- Before this folder is published, name the original as `base_model` in the front matter above.")
    lines += [f"- {without_folders(note)}" for note in condensed(result.notes)]
    return lines
