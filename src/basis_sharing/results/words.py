"""Texts about a compression result: amounts, sentences, and the code that repeats it or loads the model."""

import re
import shlex
from collections.abc import Sequence
from math import exp
from pathlib import Path
from typing import Any

from basis_sharing.plans.plan import Prediction
from basis_sharing.recipe.recipe import Recipe
from basis_sharing.recipe.settings import flag_of
from basis_sharing.recipe.target import TARGETS
from basis_sharing.results.compression import LANGUAGE_MODELS, CompressionResult

_SET_BY_THE_PLAN = ("method", "gradients")
_FOLDERS = re.compile(r"""(?<![^\s:'"(])(?:~|[A-Za-z]:)?[/\\](?=[^\s/\\])(?:[^/\\:'"\n]+[/\\])*(?=[^/\\:\s])""")


def amount_of_bytes(count: int) -> str:
    """Return a number of bytes in the unit that gives one to four digits, e.g. ``"541.3 MiB"``."""
    value, unit = float(count), "bytes"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if value < 1024:
            break
        value, unit = value / 1024, larger
    return f"{count} bytes" if unit == "bytes" else f"{value:,.1f} {unit}"


def change(before: float, after: float) -> str:
    """Return a relative change with its sign, e.g. ``"-18.0 %"``."""
    return f"{100 * (after / before - 1):+.1f} %"


def short_name(model: str) -> str:
    """Return the last part of a model's path or hub id, by which results are matched."""
    return Path(model).name or model


def changed_settings(recipe: Recipe) -> dict[str, Any]:
    """Return the settings that differ from their default and have to be given to repeat the compression."""
    defaults = {name: field.default for name, field in Recipe.model_fields.items()}
    skipped = _SET_BY_THE_PLAN if recipe.plan is not None else ()
    return {
        name: value
        for name, default in defaults.items()
        if name not in skipped and (value := getattr(recipe, name)) != default
    }


def command_line(result: CompressionResult, output: str = "DIR", *, published: bool = False) -> str:
    """Return the command that compresses the model again with the same settings.

    Args:
        result: The result of the compression.
        output: The folder to write.
        published: Whether the command is published: absolute paths are cut to their last part.
    """
    words, options = ["basis-sharing", "compress", result.model, "-o", output], Recipe.options()
    for name, value in changed_settings(result.recipe).items():
        option = options[name]
        flag = flag_of(name, option)
        if option.flag is not None:
            words.append(flag)
        elif option.repeated:
            words += [word for text in value for word in (flag, text)]
        elif isinstance(value, tuple):
            words += [flag, ",".join(map(str, value))]
        else:
            words += [flag, str(value)]
    return shlex.join(without_folders(word) if published else word for word in words)


def python_call(result: CompressionResult, output: str = "DIR") -> str:
    """Return the Python call that compresses a model in memory again with the same settings."""
    settings = {"output": output} | changed_settings(result.recipe)
    if "plan" in settings:
        settings["plan"] = str(settings["plan"])
    arguments = "".join(f", {name}={value!r}" for name, value in settings.items())
    return f"basis_sharing.compress(model, tokenizer=tokenizer{arguments})"


def how_to_repeat(result: CompressionResult, output: str = "DIR", *, published: bool = False) -> str:
    """Return the command that repeats a compression, or the Python call for a model that was given in memory."""
    if result.model_fingerprint is not None:
        return command_line(result, output, published=published)
    call = python_call(result, output)
    return without_folders(call) if published else call


def was_trained(result: CompressionResult) -> bool:
    """Return whether anything was trained; a refit in closed form does not count as training."""
    refined = result.repair is not None and result.repair.epochs > 0
    return refined or result.recovery is not None


def expectation(prediction: Prediction) -> str:
    """Return the expected loss of a plan in one sentence."""
    rise = prediction.nats_per_token
    cost = f"The plan expected {rise:+.4f} nats per token, {exp(min(rise, 700)):.3f} x the perplexity"
    if prediction.scale is None:
        return f"{cost}, from its calibration text alone, not scaled by a measurement."
    error = "" if prediction.scale_error is None else f" +- {prediction.scale_error:.2f}"
    return f"{cost}, scaled by {prediction.scale:.2f}{error}, one plan measured on {prediction.text}."


def bits_per_weight(result: CompressionResult) -> float | None:
    """Return the bits in memory per weight of the compressible projections; None for results of earlier versions."""
    stored = result.after.projection_bytes
    return None if stored is None else 8 * stored / result.before.projection_parameters


def asked_and_reached(result: CompressionResult) -> str:
    """Return the target and what was reached, in one sentence: bits where they were asked, else what was removed."""
    given = [(name, value) for name in TARGETS if (value := getattr(result.recipe, name)) is not None]
    asked = " and ".join(f"{name.replace('_', ' ')} asked {value}" for name, value in given)
    reached = bits_per_weight(result)
    if result.recipe.bits is not None and reached is not None:
        return (
            f"Method {result.method}; {asked}, reached {reached:.4f} per weight of the compressible "
            "projections, scales and indices counted."
        )
    return (
        f"Method {result.method}; {asked}, reached "
        f"{result.ratio_reached:.4f} of the parameters of the compressible projections removed."
    )


def groups_and_shared(result: CompressionResult) -> str:
    """Return how many groups there are, and how many of them share a basis, e.g. ``"27, of which 7 share a basis"``."""
    return f"{len(result.entries)}, of which {sum(len(group.members) > 1 for group in result.entries)} share a basis"


def calibrated_on(result: CompressionResult) -> str | None:
    """Return the calibration text and how much of it was read; None if the method needs none."""
    if result.calibration is None:
        return None
    used = result.calibration
    return f"{used.source}: {used.windows} windows of {used.length} tokens, in {used.dtype}"


def condensed(notes: Sequence[str], most: int = 6) -> list[str]:
    """Return the first ``most`` notes, and a line with the number of further ones if there are any."""
    if len(notes) <= most:
        return list(notes)
    return [*notes[:most], f"... and {len(notes) - most} more, see basis_sharing.json or --json"]


def repairs(result: CompressionResult) -> list[str]:
    """Return one sentence each for the repair and the recovery, if they were made."""
    sentences = []
    if result.repair is not None:
        done = result.repair
        means = " and ".join([*(["refitted"] if done.refit else []), *(["trained"] if done.epochs else [])])
        better = sum(after < before for before, after in zip(done.before, done.after, strict=True))
        sentences.append(
            f"{'Each block was' if done.epochs else 'The coefficients of each block were'} {means}, towards the "
            f"original's states, on {done.segments} segments of {done.length} tokens; {better} of {len(done.before)} "
            "blocks got nearer to the original."
        )
    if result.recovery is not None:
        learned = result.recovery
        what = "LoRA on the coefficients, then merged," if learned.settings.train == "lora" else "Factors and norms"
        goal = "the original's predictions" if learned.settings.loss == "distillation" else "the text itself"
        sentences.append(
            f"{what} were trained on {goal} for {learned.steps:,} steps of {learned.settings.length} tokens of "
            f"{without_folders(learned.settings.calibration)}."
        )
    return sentences


def recovery_line(result: CompressionResult, folder: str, output: str = "DIR") -> str | None:
    """Return the command that repeats the recovery of a compressed folder; None if there was none."""
    if result.recovery is None:
        return None
    words = ["basis-sharing", "recover", folder, "-o", output]
    settings = result.recovery.settings
    for name in ("preset", "minutes", "epochs", "learning_rate", "calibration", "windows", "length", "seed"):
        value = getattr(settings, name)
        if value is not None:
            words += ["--" + name.replace("_", "-"), without_folders(str(value))]
    return shlex.join(words)


def how_to_load(result: CompressionResult, folder: str) -> tuple[str, str]:
    """Return the code that loads a compressed folder with the package installed, and the code without it."""
    loader = result.loader
    reader = "AutoTokenizer" if loader == LANGUAGE_MODELS else "AutoProcessor"
    imports = f"from transformers import {loader}, {reader}\n\n"
    tokenizer = f'{reader.removeprefix("Auto").lower()} = {reader}.from_pretrained("{folder}")\n'
    return (
        f'import basis_sharing\n{imports}model = {loader}.from_pretrained("{folder}")\n{tokenizer}',
        f'{imports}model = {loader}.from_pretrained("{folder}", trust_remote_code=True)\n{tokenizer}',
    )


def without_folders(text: str) -> str:
    """Return a text with absolute paths cut to their last part, so that it can be published."""
    return _FOLDERS.sub("", text)
