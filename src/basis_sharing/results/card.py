"""The model card of a compressed folder: what the Hugging Face Hub shows, and what a finder has to know."""

from math import exp

import yaml

from basis_sharing.results.compression import CompressionResult
from basis_sharing.results.words import (
    amount_of_bytes,
    change,
    how_to_load,
    how_to_repeat,
    mending,
    recovery_line,
    short_name,
    was_trained,
    without_folders,
)

CARD_FILE = "README.md"
_HERE = "path/to/this/folder"
_PAPER = "[Basis Sharing](https://arxiv.org/abs/2410.03765)"


def model_card(result: CompressionResult, *, hub_id: str | None) -> str:
    """Return the model card of a compressed model, as Markdown with the front matter the hub reads.

    It does not depend on the folder it lies in, which people rename and upload.

    Args:
        result: What the compression did.
        hub_id: The original on the hub; None where it came from a file or from memory, and has no name there.
    """
    original = hub_id or short_name(result.model)
    removed = 1 - result.after.parameters / result.before.parameters
    return "\n".join(
        [
            "---",
            yaml.safe_dump(_front_matter(hub_id), sort_keys=False) + "---",
            "",
            f"# {short_name(original)} with {100 * removed:.1f} % fewer parameters",
            "",
            f"A smaller form of `{original}`, made with basis-sharing {result.versions['basis-sharing']}"
            f"{'' if was_trained(result) else ', without fine-tuning'}. Weight matrices are products of a basis, "
            f"which several of them may share, and coefficients of their own ({_PAPER}).",
            "",
            "## Size",
            "",
            *_sizes(result),
            "",
            "## Quality",
            "",
            *_quality(result),
            "",
            "## Load it",
            "",
            *_loading(),
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


def _front_matter(hub_id: str | None) -> dict[str, object]:
    front: dict[str, object] = {"library_name": "transformers", "pipeline_tag": "text-generation"}
    if hub_id is not None:
        front |= {"base_model": hub_id, "base_model_relation": "quantized"}
    return front | {"tags": ["basis-sharing", "basis_sharing", "compression", "low-rank"]}


def _sizes(result: CompressionResult) -> list[str]:
    before, after = result.before, result.after
    rows = [
        ("parameters", f"{before.parameters:,}", f"{after.parameters:,}", change(before.parameters, after.parameters)),
        (
            "of these in compressible projections",
            f"{before.projection_parameters:,}",
            f"{after.projection_parameters:,}",
            change(before.projection_parameters, after.projection_parameters),
        ),
        (
            "multiplications per token there",
            f"{before.projection_multiplications:,}",
            f"{after.projection_multiplications:,}",
            change(before.projection_multiplications, after.projection_multiplications),
        ),
        (
            "in memory",
            amount_of_bytes(before.bytes_in_memory),
            amount_of_bytes(after.bytes_in_memory),
            change(before.bytes_in_memory, after.bytes_in_memory),
        ),
    ]
    if after.bytes_on_disk is not None:
        known = before.bytes_on_disk is not None
        rows.append(
            (
                "on disk",
                amount_of_bytes(before.bytes_on_disk) if before.bytes_on_disk is not None else "-",
                amount_of_bytes(after.bytes_on_disk),
                change(before.bytes_on_disk, after.bytes_on_disk) if known and before.bytes_on_disk else "-",
            )
        )
    return ["| | original | this model | change |", "|---|---:|---:|---:|", *(f"| {' | '.join(row)} |" for row in rows)]


def _quality(result: CompressionResult) -> list[str]:
    lines = []
    if result.perplexity_before:
        lines += ["| perplexity on | original | this model | quotient |", "|---|---:|---:|---:|"]
        for dense, small in zip(result.perplexity_before, result.perplexity_after, strict=True):
            lines.append(
                f"| {without_folders(dense.text)}, {dense.windows} windows of {dense.length} tokens, {dense.dtype} | "
                f"{dense.perplexity:,.3f} | {small.perplexity:,.3f} | {small.perplexity / dense.perplexity:.3f} |"
            )
    else:
        lines.append("Not measured when the model was made. Measure before you use it: `basis-sharing eval`.")
    if result.prediction is not None:
        expected = exp(min(result.prediction.nats_per_token, 700))
        lines += ["", f"The plan expected {expected:.3f} times the perplexity, from its calibration text."]
    return lines


def _loading() -> list[str]:
    installed, bare = how_to_load(_HERE)
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
    shared = sum(len(group.members) > 1 for group in result.entries)
    lines = [
        f"Method `{result.method}`; {len(result.entries)} groups of projections, of which {shared} share a basis; "
        f"{100 * result.ratio_reached:.2f} % of the parameters of the compressible projections removed."
    ]
    if result.calibration is not None:
        used = result.calibration
        lines.append(
            f"Calibrated on {used.windows} windows of {used.length} tokens of `{without_folders(used.source)}` in "
            f"{used.dtype}."
        )
    lines += mending(result)
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
    lines += [f"- {without_folders(note)}" for note in result.notes[:6]]
    return lines
