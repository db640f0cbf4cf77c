"""``estimate``: time, memory and disk space of a compression, from shapes alone."""

from typing import Any, Unpack

from basis_sharing.calibration.corpora import parse_mixture
from basis_sharing.calibration.text import calibration_text
from basis_sharing.models.decoder import describe, with_roles
from basis_sharing.models.sizes import memory_bytes
from basis_sharing.models.source import load_skeleton, load_tokenizer, named_dtype, read_in_place, stored_bytes
from basis_sharing.recipe.recipe import Recipe, RecipeKeywords, as_recipe
from basis_sharing.results.estimate import Estimate, StageEstimate
from basis_sharing.run.machine import machine_for, taken_memory
from basis_sharing.run.run import Run, source_of
from basis_sharing.run.stages import least_memory, needs_of
from basis_sharing.verbs.stages import CompressionStages, known_plan, shapes_of, with_plan


def estimate(
    model: Any,
    recipe: Recipe | float | str | None = None,
    *,
    tokenizer: Any = None,
    device: str | None = None,
    max_memory: int | str | None = None,
    **settings: Unpack[RecipeKeywords],
) -> Estimate:
    """Estimate the time, memory and disk space of a compression without loading weights.

    Args:
        model: As for :func:`~basis_sharing.verbs.compress.compress`.
        recipe: A recipe, or the ratio.
        tokenizer: The tokenizer of a model given in memory.
        device: Device of the run.
        max_memory: Bytes of memory it may take; None: most of the free memory.
        **settings: Settings of :class:`~basis_sharing.recipe.recipe.Recipe`.

    Returns:
        Time, memory and disk space stage by stage; time is accurate to about a factor of two.

    Raises:
        BasisSharingError: As ``compress``, for errors that are known before the weights are read.

    Example:
        >>> import basis_sharing
        >>> needs = basis_sharing.estimate("./llama", ratio=0.2)
        >>> needs.least_memory < needs.memory
        True
    """
    recipe, given = with_plan(as_recipe(recipe, settings))
    source = source_of(model, tokenizer)
    resident, kept = taken_memory(), named_dtype(recipe.dtype)
    skeleton = model if source is None else load_skeleton(source)
    if source is not None:
        tokenizer = load_tokenizer(source)
        if not read_in_place(source, kept):
            resident += memory_bytes(skeleton) * (kept or skeleton.dtype).itemsize // skeleton.dtype.itemsize
    whole = describe(skeleton)
    machine = machine_for(device, max_memory, model)
    run = Run(skeleton, tokenizer, whole, with_roles(whole, recipe.roles), source, machine=machine)
    windows, length = _text_size(recipe, run)
    shapes = shapes_of(recipe, run, windows, length, kept or skeleton.dtype, timed=True)
    needs = needs_of(CompressionStages(recipe, given=known_plan(recipe, given, run.decoder)).listed(), shapes)
    return Estimate(
        stages=tuple(StageEstimate(name=n.name, seconds=n.seconds, memory=n.memory) for n in needs),
        resident=resident,
        least_memory=least_memory(needs, resident),
        memory=run.machine.memory,
        work_bytes=sum(n.work_bytes for n in needs),
        output_bytes=stored_bytes(source) if source is not None else memory_bytes(skeleton),
        windows=windows,
        length=length,
        processes=run.processes.count,
    )


def _text_size(recipe: Recipe, run: Run) -> tuple[int, int]:
    """Return the number of calibration windows and the tokens in each; zeros if the method reads no text."""
    if any(part.kind == "self" for part in parse_mixture(recipe.calibration)):
        limit: int = run.model.config.get_text_config().max_position_embeddings
        return recipe.windows, recipe.length or limit
    if not recipe.reads_text:
        return 0, 0
    windows, length = calibration_text(recipe, run).input_ids.shape
    return windows, length
