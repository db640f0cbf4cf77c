"""What a run will need, from shapes alone: time, memory and disk, before anything is measured.

Memory is counted generously, because a run that is killed for it is worth nothing; time is meant within a factor of
two, from speeds that are tried out for a second.
"""

import time
from dataclasses import replace
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict

from basis_sharing.calibration.collect import Calibration, calibration_text, weighting_of
from basis_sharing.calibration.corpora import parse_mixture
from basis_sharing.models.decoder import describe, with_roles
from basis_sharing.models.family import Decoder, Projection
from basis_sharing.models.sizes import memory_bytes
from basis_sharing.models.source import load_skeleton, load_tokenizer, named_dtype, read_in_place, stored_bytes
from basis_sharing.recipe.presets import Weighting
from basis_sharing.recipe.recipe import Recipe
from basis_sharing.repair.segments import FEWEST_SEGMENTS, REFIT_SEGMENTS, SEGMENT, segment_count
from basis_sharing.run.machine import Machine, default_dtype, machine_for, taken_memory, too_little
from basis_sharing.run.progress import silent
from basis_sharing.run.run import Subject, source_of

_MARGIN, _ALLOWANCE = 1.15, 96 * 2**20
_POSITIONS = 512  # of which logits exist at a time
# How many times as long as for single projections it takes to measure the other candidates, found on SmolLM2-135M.
_JOINT_CANDIDATES, _SHARED_CANDIDATES = 0.7, 12.0


class Stage(BaseModel):
    """One stage of a run.

    Attributes:
        name: What is done.
        seconds: How long it will take.
        memory: Bytes it needs besides what the process has anyway.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    seconds: float
    memory: int


class Estimate(BaseModel):
    """What a run will need.

    Attributes:
        stages: The stages in their order.
        resident: Bytes of memory the process has before they begin: libraries, and weights that are no files here.
        least_memory: The smallest ``--max-memory`` that can work.
        memory: The memory the run may take.
        work_bytes: Bytes of files it keeps while it runs.
        output_bytes: Bytes of the compressed weights, at most.
        windows: Number of calibration windows.
        length: Tokens in each.
        processes: Number of processes that share the work.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    stages: tuple[Stage, ...]
    resident: int
    least_memory: int
    memory: int
    work_bytes: int
    output_bytes: int
    windows: int
    length: int
    processes: int

    @property
    def seconds(self) -> float:
        """How long the run will take."""
        return sum(stage.seconds for stage in self.stages)

    @property
    def refusal(self) -> str:
        """What to say where the memory is too little."""
        return too_little(self.memory, self.least_memory)


def estimate(
    model: Any,
    ratio: float | None = None,
    *,
    tokenizer: Any = None,
    device: str | None = None,
    max_memory: int | str | None = None,
    **settings: Any,
) -> Estimate:
    """Estimate what a compression will need, without loading weights or measuring anything on the model.

    The arguments are those of :func:`~basis_sharing.verbs.compress.compress`.

    Raises:
        BasisSharingError: As ``compress`` would, as far as it can be told before the weights are read.
    """
    recipe = Recipe.create(ratio=ratio, **settings)
    source = source_of(model, tokenizer)
    machine = machine_for(device, max_memory, model)
    resident, kept = taken_memory(), named_dtype(recipe.dtype)
    skeleton = model if source is None else load_skeleton(source)
    if source is not None:
        tokenizer = load_tokenizer(source)
        if not read_in_place(source, kept):
            resident += memory_bytes(skeleton) * (kept or skeleton.dtype).itemsize // skeleton.dtype.itemsize
    whole = describe(skeleton)
    subject = Subject(source, skeleton, tokenizer, None, whole, with_roles(whole, recipe.roles), None, machine)
    windows, length, dtype = 0, 0, kept or skeleton.dtype
    if any(part.kind == "self" for part in parse_mixture(recipe.calibration)):
        windows, length = recipe.windows, recipe.length or skeleton.config.get_text_config().max_position_embeddings
    elif (calibration := calibration_text(recipe, subject, silent)) is not None:
        windows, length = calibration.windows.input_ids.shape
    calibrated_in = named_dtype(recipe.calibration_dtype) or default_dtype(machine.device)
    shapes = _Shapes(
        recipe, skeleton, subject.decoder, windows, length, dtype, calibrated_in, machine, _twin(subject, kept)
    )
    stages = shapes.stages(_Speeds(machine, calibrated_in))
    return Estimate(
        stages=stages,
        resident=resident,
        least_memory=_least(resident, stages),
        memory=machine.memory,
        work_bytes=shapes.work_bytes(),
        output_bytes=stored_bytes(source) if source is not None else memory_bytes(skeleton),
        windows=windows,
        length=length,
        processes=machine.ranks.size,
    )


def within_memory(recipe: Recipe, subject: Subject, calibration: Calibration | None) -> Subject:
    """Return the subject with what is left of its machine's memory for what may also lie in files.

    Raises:
        MemoryBudgetError: The memory that a run may take is too small; says how much is needed.
    """
    windows, length = (0, 0) if calibration is None else calibration.windows.input_ids.shape
    calibrated_in = torch.float32 if calibration is None else calibration.dtype
    shapes = _Shapes(
        recipe,
        subject.model,
        subject.decoder,
        windows,
        length,
        subject.model.dtype,
        calibrated_in,
        subject.machine,
        _twin(subject, named_dtype(recipe.dtype)),
    )
    least = _least(taken_memory(), shapes.stages(None))
    return replace(subject, machine=subject.machine.needing(least))


def _twin(subject: Subject, dtype: torch.dtype | None) -> int:
    """Return the bytes of an original beside the compressed model, which take no memory where they stay in files."""
    if subject.source is not None and read_in_place(subject.source, dtype):
        return 0
    stored: torch.dtype = subject.model.dtype
    return memory_bytes(subject.model) * (dtype or stored).itemsize // stored.itemsize


def _least(resident: int, stages: tuple[Stage, ...]) -> int:
    return resident + int(_MARGIN * max((stage.memory for stage in stages), default=0)) + _ALLOWANCE


class _Speeds:
    """How fast the machine is, tried out on small matrices."""

    def __init__(self, machine: Machine, dtype: torch.dtype) -> None:
        a = torch.randn(1024, 1024, device=machine.device).to(dtype)
        self.products = 2 * 1024**3 / _timed(lambda: (a @ a).sum().item())
        b = torch.randn(512, 512, device=machine.algebra, dtype=torch.float64)
        symmetric = b @ b.T
        self.algebra = 2 * 512**3 / _timed(lambda: (b @ b).sum().item())
        self.eigenvalues = 512**3 / _timed(lambda: torch.linalg.eigvalsh(symmetric).sum().item())
        self.eigenvectors = 512**3 / _timed(lambda: torch.linalg.eigh(symmetric)[0].sum().item())


def _timed(action: Any) -> float:
    """Return the least seconds of a few runs."""
    action()
    found = []
    for _ in range(5):
        start = time.perf_counter()
        action()
        found.append(time.perf_counter() - start)
    return min(found)


class _Shapes:
    """Counts of what a run computes and holds."""

    def __init__(
        self,
        recipe: Recipe,
        model: Any,
        decoder: Decoder,
        windows: int,
        length: int,
        dtype: torch.dtype,
        calibrated_in: torch.dtype,
        machine: Machine,
        twin: int,
    ) -> None:
        config = model.config.get_text_config()
        self.recipe, self.decoder, self.machine, self.twin = recipe, decoder, machine, twin
        self.windows, self.length = -(-windows // machine.ranks.size), length
        self.dtype, self.calibrated_in = dtype, calibrated_in
        self.vocabulary: int = config.vocab_size
        self.hidden: int = config.hidden_size
        blocks = [model.get_submodule(path) for path in decoder.blocks]
        self.block_parameters = [sum(p.numel() for p in block.parameters()) for block in blocks]
        inside = sum(self.block_parameters)
        self.outside = sum(p.numel() for p in model.parameters()) - inside
        eager = getattr(config, "_attn_implementation", None) == "eager"
        self.scores: int = config.num_attention_heads * length**2 if eager else 0
        self.inputs = {(p.block, p.input): p.d_in for p in decoder.projections}
        self.weighting = weighting_of(recipe)

    @property
    def _of_a_block(self) -> list[Projection]:
        """The projections of the block with most of them."""
        return max(
            ([p for p in self.decoder.projections if p.block == index] for index in range(len(self.decoder.blocks))),
            key=lambda found: sum(p.d_in * p.d_out for p in found),
        )

    def stages(self, speeds: _Speeds | None) -> tuple[Stage, ...]:
        """Return the stages; without speeds they take no time."""
        found = []
        tokens = self.windows * self.length
        forward = sum(2 * tokens * n for n in self.block_parameters)
        forward += 4 * tokens * self.length * self.hidden * len(self.block_parameters)
        grams = sum(tokens * width**2 for width in self.inputs.values())
        outputs = sum(tokens * p.d_out**2 for p in self.decoder.projections)
        head = 2 * tokens * self.vocabulary * self.hidden
        gradients = self.weighting == Weighting.LOSS
        if self.weighting not in (Weighting.NONE, Weighting.FISHER):
            work = 3 * forward + 3 * head + grams + outputs if gradients else forward + grams
            name = "calibration, with gradients" if gradients else "calibration"
            found.append((name, speeds and work / speeds.products, self._calibrating(gradients)))
        if self.weighting == Weighting.FISHER:
            found.append(("calibration", speeds and 5 * forward / speeds.products, self._calibrating(True)))
        if self.weighting == Weighting.SENSITIVITY:
            share = 1024 / max(tokens, 1) * len(self.decoder.projections) / 2
            work = (forward + len(self.block_parameters) * head) * share
            found.append(("sensitivities", speeds and work / speeds.products, self._calibrating(False)))
        solving = self._solving()
        if self.recipe.preset.planned and self.recipe.plan is None:
            found.append(("planning", speeds and self._planning_seconds(speeds), solving))
        found.append(("factorization", speeds and self._factorizing_seconds(speeds), solving))
        if self.recipe.chosen_refit == "always":
            found.append(
                ("refit", speeds and (forward + grams) / speeds.products, self._calibrating(False) + 2 * solving // 3)
            )
        bos, every = self.decoder.family.needs_bos, self.windows * self.machine.ranks.size
        segments = segment_count(every, self.length, bos) if every else 0
        if self.recipe.chosen_refit == "anchored" and segments >= FEWEST_SEGMENTS:
            share = min(1.0, REFIT_SEGMENTS / segments)
            work = share * forward * (2 + 2 * len(self.inputs) / len(self.block_parameters))
            found.append(("refit", speeds and work / speeds.products, self.twin + self._training(3) + solving))
        if self.recipe.refine is not None:
            found.append(("refinement", speeds and 60 * self.recipe.refine, self.twin + self._training()))
        if self.recipe.evaluate or self.recipe.max_perplexity_increase is not None:
            per_window = (forward + head) / max(self.windows, 1)
            count = 2 * (self.recipe.evaluation_windows or 64) * max(1, len(self.recipe.evaluate))
            found.append(("evaluation", speeds and count * per_window / speeds.products, self._evaluating()))
        return tuple(Stage(name=name, seconds=seconds or 0.0, memory=memory) for name, seconds, memory in found)

    def work_bytes(self) -> int:
        """Return the bytes of what is kept until the run is done."""
        states = self.windows * self.length * self.hidden * self.calibrated_in.itemsize
        total = 3 * states + sum(4 * width**2 for width in self.inputs.values())
        if self.weighting == Weighting.LOSS:
            total += (len(self.decoder.blocks) + 2) * states + sum(4 * p.d_out**2 for p in self.decoder.projections)
        return total + sum(p.d_in * p.d_out for p in self.decoder.projections) * self.dtype.itemsize

    def _calibrating(self, gradients: bool) -> int:
        """Return the memory of one block at work, with its statistics."""
        projections, size = self._of_a_block, self.calibrated_in.itemsize
        inputs = {p.input: p.d_in for p in projections}
        moments = sum(4 * width**2 for width in inputs.values())
        copies = max(self.block_parameters) * size if self.calibrated_in != self.dtype else 0
        if not gradients:
            working = self.length * size * (6 * self.hidden + 3 * max(p.d_in + p.d_out for p in projections))
            return moments + copies + working + 2 * size * self.scores
        moments += sum(4 * p.d_out**2 for p in projections)
        working = self.length * size * (8 * self.hidden + 2 * sum(p.d_in + p.d_out for p in projections))
        logits = 3 * 4 * _POSITIONS * self.vocabulary
        if self.calibrated_in != self.dtype:
            logits += self.outside * size
        return max(moments + copies + working + 4 * size * self.scores, logits)

    def _training(self, copies: int = 6) -> int:
        """Return the memory of a block in training: weights, gradients, the optimizer's two, the best state; fp32."""
        widths = sum(p.d_in + p.d_out for p in self._of_a_block)
        states: int = min(self.length, SEGMENT) * (16 * self.hidden + 3 * widths)
        masters: int = copies * max(self.block_parameters)
        return 4 * (masters + states)

    def _solving(self) -> int:
        """Return the memory of the largest problem: one matrix with its weightings, and the factors of its group."""
        most = 0
        for p in self.decoder.projections:
            small = min(p.d_in, p.d_out)
            whitening = 3 * p.d_in**2 if self.weighting != Weighting.NONE else 0
            right = 2 * p.d_out**2 if self.weighting == Weighting.LOSS else 0
            most = max(most, 8 * (whitening + right + 5 * small**2 + 4 * p.d_in * p.d_out))
        return most

    def _evaluating(self) -> int:
        size, length = self.dtype.itemsize, self.length or 2048
        widest = max(p.d_in + p.d_out for p in self.decoder.projections)
        return length * size * (self.vocabulary + 6 * self.hidden + 3 * widest) + 8 * _POSITIONS * self.vocabulary

    def _factorizing_seconds(self, speeds: _Speeds) -> float:
        return sum(self._solving_seconds(p, speeds, vectors=True) for p in self.decoder.projections) / self._processes

    def _planning_seconds(self, speeds: _Speeds) -> float:
        alone = sum(self._solving_seconds(p, speeds, vectors=False) for p in self.decoder.projections)
        more = _JOINT_CANDIDATES * self.recipe.across_roles + _SHARED_CANDIDATES * self.recipe.across_depth
        return alone * (1 + more) / self._processes

    def _solving_seconds(self, p: Projection, speeds: _Speeds, *, vectors: bool) -> float:
        small = min(p.d_in, p.d_out)
        products = 2 * p.d_in * p.d_out * (p.d_in + p.d_out) + p.d_in**3
        return products / speeds.algebra + small**3 / (speeds.eigenvectors if vectors else speeds.eigenvalues)

    @property
    def _processes(self) -> int:
        return self.machine.ranks.size
