"""The stages of a run that repair a compressed model: before the plan is carried out, and after."""

import copy
from collections.abc import Iterable
from typing import Any

from torch import Tensor

from basis_sharing.calibration.collect import moments_of_now
from basis_sharing.calibration.moments import Statistics
from basis_sharing.calibration.text import CalibrationText
from basis_sharing.errors import RecipeError
from basis_sharing.models.decoder import weight
from basis_sharing.models.source import load_with_notes
from basis_sharing.recipe.repair import Refit, Repair
from basis_sharing.repair.block_training import BlockGain
from basis_sharing.repair.blocks import repair_blocks
from basis_sharing.repair.segments import (
    FEWEST_SEGMENTS,
    REFIT_SEGMENTS,
    SEGMENT,
    RepairSchedule,
    check_text,
    segment_count,
    segment_length,
)
from basis_sharing.results.compression import RepairReport
from basis_sharing.run.run import Run
from basis_sharing.run.stages import Needs, Shapes
from basis_sharing.runtime.entries_basis_sharing import Factors
from basis_sharing.treatments.factors.refit import refit
from basis_sharing.treatments.stage import Execute, Planned, errors_of


class KeepOriginal:
    """Keep the parts of the original that later stages need, before the plan changes the model.

    Args:
        repair: The settings of the repair.
        refit: How coefficients are refitted.
        seed: Seed of the order of the text.
        text: The calibration text; None: nothing is repaired.
        planned: The stage that makes the plan.

    Attributes:
        anchored: Whether coefficients are refitted block by block.
        model: The original; None: it is not needed.
        weights: The original weights by name, shape ``[d_in, d_out]``, if all coefficients are refitted at once.
    """

    anchored: bool
    model: Any
    weights: dict[str, Tensor]

    def __init__(self, repair: Repair, refit: Refit, seed: int, text: CalibrationText | None, planned: Planned) -> None:
        self.repair, self.refit, self.seed, self.text, self._planned = repair, refit, seed, text, planned

    def check_text(self) -> None:
        """Make sure that the text suffices for an explicitly requested repair, before anything is measured.

        Raises:
            RecipeError: The text is too short.
        """
        requested = self.repair.refine is not None or self.repair.refit == "anchored"
        if self.text is not None and requested:
            check_text(self.text.input_ids, self.text.windows.bos)

    def needs(self, shapes: Shapes) -> Iterable[Needs]:
        """Return nothing: the stages that use the original count its memory."""
        return ()

    def run(self, run: Run) -> None:
        """Decide what will be repaired, and keep the parts of the original that this needs."""
        self.anchored = self._anchored(run)
        self.model = self._twin(run) if self.anchored or self.repair.refine is not None else None
        # References to the dense weights keep them alive after their modules are replaced.
        every = self.refit == "always" and self.text is not None
        self.weights = {p.name: weight(run.model, p) for p in run.decoder.projections} if every else {}

    def about(self) -> dict[str, object]:
        """Return the settings that repaired blocks depend on besides the plan and its statistics."""
        return {"anchored": self.anchored, "refine": self.repair.refine, "seed": self.seed}

    def _anchored(self, run: Run) -> bool:
        """Return whether coefficients are refitted block by block; a note is added if the text is too short for it.

        Raises:
            RecipeError: The text is too short, and the refit was requested explicitly.
        """
        if self.refit != "anchored" or self.text is None:
            return False
        ranks = [entry.rank for entry in self._planned.plan.entries if isinstance(entry, Factors)]
        try:
            check_text(self.text.input_ids, self.text.windows.bos, max(ranks, default=0))
        except RecipeError as error:
            if self.repair.refit == "anchored":
                raise
            run.notes.append(f"coefficients were not refitted to the compressed flow: {error}")
            return False
        return True

    def _twin(self, run: Run) -> Any:
        """Return a second copy of the original; weights that are read in place from files take no memory."""
        return copy.deepcopy(run.model) if run.source is None else load_with_notes(run.source, run.model.dtype)[0]


class RefitAll:
    """Refit all coefficients at once on the compressed model's inputs (Basis Sharing, section 3.4).

    Args:
        original: The stage that keeps the original weights.
        planned: The stage that makes the plan.
        execute: The stage that carries it out.
    """

    def __init__(self, original: KeepOriginal, planned: Planned, execute: Execute) -> None:
        self._original, self._planned, self._execute = original, planned, execute

    def needs(self, shapes: Shapes) -> Iterable[Needs]:
        """Yield the needs of a pass over the text through the compressed model, and of the solutions."""
        solving = shapes.solving_memory(whitened=True, outputs=False)
        memory = shapes.block_memory(gradients=False) + 2 * solving // 3
        seconds = shapes.seconds(shapes.forward + shapes.input_moments)
        seconds += sum(shapes.refitting_seconds(p) for p in shapes.decoder.projections)
        yield Needs("refit", seconds, memory)

    def run(self, run: Run) -> None:
        """Collect second moments in the compressed model, and solve for the coefficients."""
        plan, text, folder = self._planned.plan, self._original.text, self._execute.folder
        if text is None:
            return
        stage, statistics = "calibrating on the compressed model", Statistics(gram=True)
        with errors_of(folder), moments_of_now(run, text, statistics, stage=stage, folder=folder) as moments:
            ridges = refit(run.model, run.decoder, plan, self._original.weights, moments, progress=run.progress)
        self._original.weights.clear()
        run.notes.extend(
            f"the refit of the coefficients of {owner} was singular; a relative ridge of {ridge:.0e} was added."
            for owner, ridge in ridges.items()
        )


class RepairBlocks:
    """Refit and train the blocks, one after the other, towards the original's hidden states.

    Args:
        original: The stage that keeps the original.
        execute: The stage that carries the plan out.

    Attributes:
        report: The gains of the blocks; None: nothing was repaired.
    """

    report: RepairReport | None = None

    def __init__(self, original: KeepOriginal, execute: Execute) -> None:
        self._original, self._execute = original, execute

    def needs(self, shapes: Shapes) -> Iterable[Needs]:
        """Yield the needs of refitting and training the blocks."""
        original = self._original
        minutes = original.repair.refine
        solving = shapes.solving_memory(whitened=True, outputs=True)
        if original.refit == "anchored" and self._segments(shapes) >= FEWEST_SEGMENTS:
            share = min(1.0, REFIT_SEGMENTS / self._segments(shapes))
            passes = 2 + 2 * len(shapes.inputs) / len(shapes.block_parameters)
            memory = shapes.twin + training_memory(shapes, 3) + solving
            yield Needs("refit", shapes.seconds(share * shapes.forward * passes), memory)
        if minutes is not None:
            seconds = 0.0 if shapes.speeds is None else 60 * minutes
            yield Needs("refinement", seconds, shapes.twin + training_memory(shapes))

    @staticmethod
    def _segments(shapes: Shapes) -> int:
        every, bos = shapes.windows * shapes.processes, shapes.decoder.family.needs_bos
        return segment_count(every, shapes.length, bos) if every else 0

    def run(self, run: Run) -> None:
        """Repair the blocks if the original was kept."""
        original, text, folder = self._original, self._original.text, self._execute.folder
        if original.model is None or text is None:
            return
        with errors_of(folder):
            schedule, gains = repair_blocks(
                run.model,
                original.model,
                run.decoder,
                text.input_ids,
                refit=original.anchored,
                minutes=original.repair.refine,
                dtype=text.dtype,
                seed=original.seed,
                bos=text.windows.bos,
                folder=folder,
                machine=run.machine,
                progress=run.progress,
            )
        original.model = None
        self.report = self._reported(schedule, gains, segment_length(text.input_ids.shape[1]))
        groups = {
            "got no nearer to the original and keep what they had": [
                i for i, g in enumerate(gains) if g.after >= g.before
            ],
            "diverged in training and keep their best state": [i for i, g in enumerate(gains) if g.diverged],
        }
        run.notes.extend(
            f"blocks that {what}: {', '.join(map(str, blocks))}." for what, blocks in groups.items() if blocks
        )

    def _reported(self, schedule: RepairSchedule, gains: list[BlockGain], length: int) -> RepairReport:
        return RepairReport(
            refit=self._original.anchored,
            minutes=self._original.repair.refine,
            segments=schedule.segments,
            length=length,
            epochs=schedule.epochs,
            before=tuple(gain.before for gain in gains),
            refitted=tuple(gain.refitted for gain in gains),
            after=tuple(gain.after for gain in gains),
        )


def training_memory(shapes: Shapes, copies: int = 6) -> int:
    """Return the bytes of a block in training with so many fp32 ``copies`` of its parameters, and its activations.

    Training holds weights, gradients, two optimizer states and the best state.
    """
    widths = sum(p.d_in + p.d_out for p in shapes.widest_block)
    states: int = min(shapes.length, SEGMENT) * (16 * shapes.hidden + 3 * widths)
    masters: int = copies * max(shapes.block_parameters)
    return 4 * (masters + states)
