"""The stages of a compression, and the shapes from which their needs are estimated."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

import basis_sharing
from basis_sharing.calibration.text import CalibrationText
from basis_sharing.calibration.windows import EvaluationText
from basis_sharing.checkpoint.stage import Write
from basis_sharing.evaluation.check import CheckResult, RunWindow
from basis_sharing.evaluation.stage import Evaluate
from basis_sharing.models.family import Decoder
from basis_sharing.models.sizes import memory_bytes
from basis_sharing.models.source import dtype_name, named_dtype, read_in_place
from basis_sharing.planning.published import published_plan, rounded_plan
from basis_sharing.planning.stage import MakePlan
from basis_sharing.plans.plan import Plan
from basis_sharing.recipe.recipe import Recipe
from basis_sharing.repair.stage import KeepOriginal, RefitAll, RepairBlocks
from basis_sharing.results.compression import CalibrationReport
from basis_sharing.run.machine import default_dtype
from basis_sharing.run.run import Run
from basis_sharing.run.stages import Shapes, Speeds, Stage
from basis_sharing.treatments.embeddings import RoundEmbeddings
from basis_sharing.treatments.factors.ordering import OrderInputs
from basis_sharing.treatments.stage import Declare, Execute
from basis_sharing.weightings.base import WEIGHTINGS
from basis_sharing.weightings.stage import Collect


class CompressionStages:
    """The stages of a compression in order; each takes its part of the recipe and the stages it depends on.

    Args:
        asked: The recipe.
        text: The calibration text.
        given: A plan that was made earlier, or that follows from the method.
        staging: The folder to write to; None: nothing is written.
        announce: Receives the plan before it is carried out.
    """

    def __init__(
        self,
        asked: Recipe,
        text: CalibrationText | None = None,
        given: Plan | None = None,
        staging: Path | None = None,
        announce: Callable[[Plan], None] = lambda plan: None,
    ) -> None:
        in_nats = asked.preset.planned
        provenance = {"version": basis_sharing.__version__, "method": asked.method}
        self.before = Evaluate(asked, asked.length, "evaluating the original")
        windows = None if text is None else text.windows
        self.original_window = RunWindow(windows, "running the original")
        self.collect = Collect(WEIGHTINGS[asked.weighting], text)
        self.plan = MakePlan(asked, asked, asked, asked, asked.length, self.collect, given=given, on_plan=announce)
        self.original = KeepOriginal(asked, asked.chosen_refit, asked.seed, text, self.plan)
        self.execute = Execute(self.plan, self.collect, asked, in_nats=in_nats, about=self.original.about)
        self.refit = [RefitAll(self.original, self.plan, self.execute)] if asked.chosen_refit == "always" else []
        self.repair = RepairBlocks(self.original, self.execute)
        self.order = OrderInputs(self.execute, pivoted=asked.stored_form == "pivoted", join=in_nats)
        self.embeddings = RoundEmbeddings(asked)
        self.declare = Declare(self.execute, self.plan, self.embeddings, provenance)
        self.result_window = RunWindow(windows, "checking the result")
        self.check = CheckResult(self.original_window, self.result_window)
        self.after = Evaluate(asked, asked.length, "evaluating the result")
        self.write = Write(staging)

    def evaluate_with(self, texts: Sequence[EvaluationText]) -> None:
        """Set the texts on which perplexity is measured before and after."""
        self.before.texts = self.after.texts = texts

    def listed(self) -> list[Stage]:
        """Return the stages in order."""
        return [
            self.before,
            self.original_window,
            self.collect,
            self.plan,
            self.original,
            self.execute,
            *self.refit,
            self.repair,
            self.order,
            self.embeddings,
            self.declare,
            self.result_window,
            self.check,
            self.after,
            self.write,
        ]


def with_plan(asked: Recipe) -> tuple[Recipe, Plan | None]:
    """Return a recipe with the method of the plan it names, and that plan; None if it names no plan."""
    if asked.plan is None:
        return asked, None
    plan = Plan.read(asked.plan)
    return asked.model_copy(update={"method": plan.method, "gradients": plan.gradients}), plan


def known_plan(asked: Recipe, given: Plan | None, decoder: Decoder) -> Plan | None:
    """Return the given plan or that of a published method; None if the plan has to be made from measurements."""
    if given is not None or asked.preset.planned:
        return given
    if asked.preset.rounding is not None:
        assert asked.bits is not None
        return rounded_plan(asked, int(asked.bits), decoder)
    assert asked.exact_ratio is not None
    return published_plan(asked, asked.exact_ratio, decoder)


def shapes_of_run(asked: Recipe, run: Run, text: CalibrationText | None) -> Shapes:
    """Return the shapes of a run from which the needs of its stages are estimated."""
    windows, length = (0, 0) if text is None else text.input_ids.shape
    calibrated_in = torch.float32 if text is None else text.dtype
    return shapes_of(asked, run, windows, length, run.model.dtype, calibrated_in=calibrated_in)


def shapes_of(
    asked: Recipe,
    run: Run,
    windows: int,
    length: int,
    dtype: torch.dtype,
    *,
    calibrated_in: torch.dtype | None = None,
    timed: bool = False,
) -> Shapes:
    """Return the shapes of a model and of its calibration text.

    Args:
        asked: The recipe.
        run: The model, real or on the meta device, and its machine.
        windows: Number of calibration windows.
        length: Tokens in each.
        dtype: Dtype of the weights.
        calibrated_in: Dtype of the calibration pass; None: that of the recipe.
        timed: Whether the machine's speed is measured; otherwise all times are 0.
    """
    calibrated_in = calibrated_in or named_dtype(asked.calibration_dtype) or default_dtype(run.machine.device)
    return Shapes(
        run.model,
        run.decoder,
        run.machine,
        windows=windows,
        length=length,
        dtype=dtype,
        calibrated_in=calibrated_in,
        twin=_twin(run, named_dtype(asked.dtype)),
        speeds=Speeds.tried(run.machine, calibrated_in) if timed else None,
    )


def _twin(run: Run, dtype: torch.dtype | None) -> int:
    """Return the bytes of a second copy of the original; 0 if it is read in place from its files."""
    if run.source is not None and read_in_place(run.source, dtype):
        return 0
    stored: torch.dtype = run.model.dtype
    return memory_bytes(run.model) * (dtype or stored).itemsize // stored.itemsize


def calibration_report(text: CalibrationText) -> CalibrationReport:
    """Return the report of a calibration text."""
    count, length = text.input_ids.shape
    return CalibrationReport(
        source=text.windows.source,
        fingerprint=text.windows.fingerprint,
        windows=count,
        length=length,
        dtype=dtype_name(text.dtype),
    )
