"""The story of one compression, from a model to a smaller one."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import torch

import basis_sharing
from basis_sharing.calibration.corpora import parse_source
from basis_sharing.calibration.fisher import row_fisher
from basis_sharing.calibration.moments import MomentStore, Statistics
from basis_sharing.calibration.sweep import default_dtype, sweep
from basis_sharing.calibration.windows import EvaluationText, TokenWindows, calibration_windows
from basis_sharing.checkpoint.writer import check_space, output_errors, publish, reserve, write_model
from basis_sharing.errors import ModelError, RecipeError
from basis_sharing.evaluation.perplexity import measure, prepare_text, window_length
from basis_sharing.factorization.execute import GroupOutcome, factorize, refit
from basis_sharing.factorization.weighting import InputWhitening
from basis_sharing.layers.surgery import declare_compressed, install_factors, projection_parameters
from basis_sharing.models.decoder import describe, weight
from basis_sharing.models.families import FAMILIES
from basis_sharing.models.family import ROLES, Decoder
from basis_sharing.models.sizes import memory_bytes, parameter_count, weight_file_bytes
from basis_sharing.models.source import (
    ModelSource,
    fingerprint,
    load_model,
    load_tokenizer,
    named_dtype,
    refuse_compressed,
    resolve,
    stored_bytes,
)
from basis_sharing.plan import Plan
from basis_sharing.planning.uniform import uniform_plan
from basis_sharing.presets import InputWeighting
from basis_sharing.progress import Progress, ProgressCallback, silent
from basis_sharing.recipe import Recipe
from basis_sharing.result import (
    RESULT_FILE,
    CalibrationReport,
    CompressionResult,
    GroupReport,
    Perplexity,
    Sizes,
)

_MEMORY_SHARE = 0.5


def compress(
    model: Any,
    ratio: float,
    *,
    output: str | Path | None = None,
    overwrite: bool = False,
    tokenizer: Any = None,
    progress: ProgressCallback = silent,
    **settings: Any,
) -> tuple[Any, CompressionResult]:
    """Compress a causal language model.

    Args:
        model: A folder, a GGUF file or a hub id (``str`` or ``Path``), or a model in memory, which is changed in
            place.
        ratio: Fraction of the parameters to remove from the compressible projections.
        output: Folder for the compressed model; None: it is only returned.
        overwrite: Whether a model folder at ``output`` may be replaced.
        tokenizer: The tokenizer of a model given in memory.
        progress: Receives progress events.
        **settings: The other fields of :class:`~basis_sharing.recipe.Recipe`, e.g. ``method="svd-llm"``.

    Returns:
        The compressed model, ready to use and to ``save_pretrained``, and the result.

    Raises:
        BasisSharingError: Something is wrong with the settings, the model, the text or the output; see
            :mod:`basis_sharing.errors`.
    """
    recipe = Recipe.create(ratio=ratio, **settings)
    source = resolve(model) if isinstance(model, (str, Path)) else None
    if source is not None:
        refuse_compressed(source)
    elif tokenizer is None:
        raise RecipeError("a model given in memory needs its tokenizer: pass tokenizer=...")
    elif getattr(model.config, "quantization_config", None):
        raise ModelError("the model given in memory is already compressed or quantized: give the original instead.")
    if output is None:
        return _run(recipe, source, model, tokenizer, None, progress)
    with reserve(Path(output), overwrite=overwrite, inputs=_input_paths(recipe, source)) as staging:
        compressed, result = _run(recipe, source, model, tokenizer, staging, progress)
        publish(staging, Path(output))
    return compressed, result


def _run(
    recipe: Recipe,
    source: ModelSource | None,
    model: Any,
    tokenizer: Any,
    staging: Path | None,
    progress: ProgressCallback,
) -> tuple[Any, CompressionResult]:
    """Compress, and write into ``staging`` if there is one."""
    if source is not None:
        progress(Progress("loading", 0, 1, "model"))
        tokenizer = load_tokenizer(source)
        model = load_model(source, named_dtype(recipe.dtype))
        progress(Progress("loading", 1, 1, "model"))
    training = model.training
    model.eval()
    decoder = describe(model)
    shared_roles = _shared_roles(recipe, decoder)
    plan = uniform_plan(
        decoder,
        method=recipe.method,
        ratio=recipe.exact_ratio,
        group_size=recipe.group_size or recipe.preset.group_size,
        shared_roles=shared_roles,
        form=recipe.form,
    )
    plan.check(decoder)
    removed_fraction = plan.removed_fraction(decoder)
    progress(Progress(f"planned, {removed_fraction:.2%} less", len(plan.groups), len(plan.groups), "groups"))
    before = _sizes(model, decoder, stored_bytes(source) if source is not None else None)
    if staging is not None:
        removed = int(removed_fraction * before.projection_parameters)
        check_space(staging, before.bytes_in_memory - removed * model.dtype.itemsize)

    texts = [
        prepare_text(model, tokenizer, text, windows=recipe.evaluation_windows, length=recipe.length)
        for text in recipe.evaluate
    ]
    calibration = _calibration(recipe, model, tokenizer, progress)
    notes = list(calibration.windows.notes) if calibration else []
    perplexity_before = _measure(model, texts, "evaluating the original", progress)

    # The refit aims at the dense weights; holding them here keeps them alive once their modules are replaced.
    originals = {p.name: weight(model, p) for p in decoder.projections} if recipe.refits else {}
    groups, entries = [], []
    for outcome in _factorize(recipe, model, decoder, plan, calibration, progress):
        entries.append(install_factors(model, outcome.factors))
        if outcome.not_pivoted:
            notes.append(f"{outcome.factors.members[0]} is stored plainly: {outcome.not_pivoted}.")
        groups.append(
            GroupReport(
                members=outcome.factors.members,
                rank=outcome.factors.rank,
                form="plain" if outcome.factors.pivots is None else "pivoted",
                relative_loss=outcome.relative_loss,
                ridge=outcome.ridge,
            )
        )
    notes += [
        f"the second moment of {group.members[0]} is not positive definite; a ridge of {group.ridge:.0e} of its mean "
        "diagonal was added."
        for group in groups
        if group.ridge > 0
    ]
    if recipe.refits and calibration is not None:
        notes += _refit(model, decoder, plan, originals, calibration, progress)
    originals.clear()
    provenance = {"version": basis_sharing.__version__, "method": recipe.method, "ratio": recipe.ratio}
    declare_compressed(model, entries, provenance)

    perplexity_after = _measure(model, texts, "evaluating the result", progress)
    if staging is not None:
        write_model(staging, model, tokenizer)
    after = _sizes(model, decoder, weight_file_bytes(staging) if staging is not None else None)
    result = CompressionResult(
        model=source.given if source is not None else type(model).__name__,
        model_fingerprint=fingerprint(source) if source is not None else None,
        family=decoder.family.name,
        recipe=recipe,
        shared_roles=shared_roles,
        calibration=calibration.report() if calibration is not None else None,
        ratio_reached=1 - after.projection_parameters / before.projection_parameters,
        before=before,
        after=after,
        groups=tuple(groups),
        perplexity_before=perplexity_before,
        perplexity_after=perplexity_after,
        notes=tuple(notes),
        versions={name: version(name) for name in ("basis-sharing", "torch", "transformers")},
    )
    model.train(training)
    if staging is not None:
        with output_errors(staging):
            (staging / RESULT_FILE).write_text(result.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return model, result


@dataclass(frozen=True)
class _Calibration:
    windows: TokenWindows
    dtype: torch.dtype

    def report(self) -> CalibrationReport:
        count, length = self.windows.input_ids.shape
        return CalibrationReport(
            source=self.windows.source,
            fingerprint=self.windows.fingerprint,
            windows=count,
            length=length,
            dtype=str(self.dtype).removeprefix("torch."),
        )


def _calibration(recipe: Recipe, model: Any, tokenizer: Any, progress: ProgressCallback) -> _Calibration | None:
    """Prepare the calibration windows, if the method looks at data at all."""
    if recipe.preset.weighting == InputWeighting.NONE and not recipe.refits:
        return None
    windows = calibration_windows(
        recipe.calibration,
        tokenizer=tokenizer,
        model=model,
        windows=recipe.windows,
        length=window_length(model.config, recipe.length),
        seed=recipe.seed,
        vocab_size=model.config.get_text_config().vocab_size,
        progress=progress,
    )
    return _Calibration(windows, named_dtype(recipe.calibration_dtype) or default_dtype(model.device))


def _factorize(
    recipe: Recipe,
    model: Any,
    decoder: Decoder,
    plan: Plan,
    calibration: _Calibration | None,
    progress: ProgressCallback,
) -> Iterator[GroupOutcome]:
    """Collect the statistics the method weighs with, then yield the factors of one group after the other."""
    weighting = recipe.preset.weighting
    if calibration is None or weighting == InputWeighting.NONE:
        yield from factorize(model, decoder, plan, InputWhitening(weighting), progress=progress)
        return
    if weighting == InputWeighting.FISHER:
        fisher = row_fisher(model, decoder, calibration.windows.input_ids, progress=progress)
        yield from factorize(model, decoder, plan, InputWhitening(weighting, fisher=fisher), progress=progress)
        return
    statistics = Statistics(
        gram=weighting == InputWeighting.SECOND_MOMENT, abs_sum=weighting == InputWeighting.MEAN_ABSOLUTE
    )
    with _moments(model, decoder, calibration, statistics, "calibrating", progress) as moments:
        yield from factorize(model, decoder, plan, InputWhitening(weighting, moments=moments), progress=progress)


def _refit(
    model: Any,
    decoder: Decoder,
    plan: Plan,
    originals: dict[str, torch.Tensor],
    calibration: _Calibration,
    progress: ProgressCallback,
) -> list[str]:
    """Refit all coefficients on the compressed flow; return notes."""
    stage = "calibrating on the compressed model"
    with _moments(model, decoder, calibration, Statistics(gram=True), stage, progress) as moments:
        ridges = refit(model, decoder, plan, originals, moments, progress=progress)
    return [
        f"the refit of the coefficients of {owner} was singular; a relative ridge of {ridge:.0e} was added."
        for owner, ridge in ridges.items()
    ]


@contextmanager
def _moments(
    model: Any,
    decoder: Decoder,
    calibration: _Calibration,
    statistics: Statistics,
    stage: str,
    progress: ProgressCallback,
) -> Iterator[MomentStore]:
    """Sweep the calibration windows; the moments are kept on disk where memory is too small for them."""
    widths = {(p.block, p.input): p.d_in for p in decoder.projections}
    needed = sum(4 * width**2 if statistics.gram else 8 * width for width in widths.values())
    with tempfile.TemporaryDirectory(prefix="basis-sharing-") as folder:
        spill = needed > _MEMORY_SHARE * psutil.virtual_memory().available
        store = MomentStore(Path(folder) if spill else None)
        for block, moments in sweep(
            model,
            decoder,
            calibration.windows.input_ids,
            statistics,
            dtype=calibration.dtype,
            stage=stage,
            progress=progress,
        ):
            store.put(block, moments)
        yield store


def _measure(
    model: Any, texts: Sequence[EvaluationText], stage: str, progress: ProgressCallback
) -> tuple[Perplexity, ...]:
    return tuple(measure(model, text, stage=stage, progress=progress) for text in texts)


def _shared_roles(recipe: Recipe, decoder: Decoder) -> tuple[str, ...]:
    """Return the roles that share: as asked, by the named family's table, or by the model's own."""
    present = {p.role for p in decoder.projections}
    if (recipe.group_size or recipe.preset.group_size) == 1:
        return ()
    if recipe.share is None:
        return tuple(role for role in decoder.family.shared_roles if role in present)
    tables = {family.name: family.shared_roles for family in FAMILIES}
    roles = [role for name in recipe.share for role in tables.get(name, (name,))]
    for role in roles:
        if role not in ROLES:
            raise RecipeError(
                f"unknown role {role!r} to share: name roles of {', '.join(ROLES)}, or a family of {', '.join(tables)}."
            )
    return tuple(role for role in ROLES if role in roles and role in present)


def _sizes(model: Any, decoder: Decoder, on_disk: int | None) -> Sizes:
    return Sizes(
        parameters=parameter_count(model),
        projection_parameters=projection_parameters(model, [p.name for p in decoder.projections]),
        bytes_in_memory=memory_bytes(model),
        bytes_on_disk=on_disk,
    )


def _input_paths(recipe: Recipe, source: ModelSource | None) -> list[Path]:
    """Return the local files and folders a run reads."""
    specs = [recipe.calibration, *recipe.evaluate]
    paths = [parsed.path for parsed in map(parse_source, specs) if parsed.path is not None]
    if source is not None and source.path is not None:
        paths.append(source.path / source.gguf_file if source.gguf_file else source.path)
    return paths
