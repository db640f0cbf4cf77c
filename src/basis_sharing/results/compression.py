"""What one compression did."""

from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from basis_sharing.plans.plan import AnyEntry, Prediction
from basis_sharing.recipe.recipe import Recipe
from basis_sharing.results.base import Frozen, Result
from basis_sharing.results.measures import Perplexity, Sizes
from basis_sharing.results.migrations import compression_from_1
from basis_sharing.results.recovery import RecoveryReport

if TYPE_CHECKING:
    from basis_sharing.calibration.text import CalibrationText

RESULT_FILE = "basis_sharing.json"


class EntryReport(Frozen):
    """One entry of the plan that was carried out.

    Attributes:
        entry: What its projections were turned into; its loss is in nats per token, None where the method does not
            predict it.
        relative_loss: Share of the weighted energy of its projections that is lost.
        ridge: Relative ridge its second moment needed, 0 for none.
    """

    entry: AnyEntry
    relative_loss: float
    ridge: float

    @property
    def members(self) -> tuple[str, ...]:
        """Module paths of the projections, the owner first."""
        return self.entry.members


class CalibrationReport(Frozen):
    """The text a model was calibrated on.

    Attributes:
        source: Source as the user gave it.
        fingerprint: Fingerprint of the token windows.
        windows: Number of windows used.
        length: Tokens per window.
        dtype: Dtype of the forward pass.
    """

    source: str
    fingerprint: str
    windows: int
    length: int
    dtype: str

    @classmethod
    def of(cls, text: "CalibrationText") -> Self:
        """Return what a result says about a calibration text."""
        count, length = text.input_ids.shape
        return cls(
            source=text.windows.source,
            fingerprint=text.windows.fingerprint,
            windows=count,
            length=length,
            dtype=str(text.dtype).removeprefix("torch."),
        )


class RepairReport(Frozen):
    """What repairing the blocks on the compressed flow did.

    Attributes:
        refit: Whether coefficients were refitted.
        minutes: About how long training was allowed to take; None: nothing was trained.
        segments: Segments of text that were used, held-out ones included.
        length: Tokens per segment.
        epochs: Passes over them at most; 0: nothing was trained.
        before: Error of every block on the held-out segments, in proportion to its states.
        refitted: That error after the refit.
        after: That error in the end.
    """

    refit: bool
    minutes: float | None
    segments: int
    length: int
    epochs: int
    before: tuple[float, ...]
    refitted: tuple[float, ...]
    after: tuple[float, ...]


class CompressionResult(Result):
    """Everything about one compression that a reader or a program may want to know.

    Attributes:
        model: The model as it was given.
        model_fingerprint: Fingerprint of its weights and configuration; None for a model given in memory.
        family: Family whose structure was used.
        recipe: The settings.
        shared_roles: Roles whose projections share bases by the method's table.
        calibration: The calibration text; None where the method needs none.
        ratio_reached: Fraction of parameters removed from the compressible projections.
        before: Sizes of the original.
        after: Sizes of the result.
        method: The method that was used: the recipe's, or that of the plan it names.
        prediction: What the plan was expected to cost; None where the method does not predict it.
        entries: The plan as it was carried out.
        perplexity_before: Perplexity of the original on the requested texts.
        perplexity_after: Perplexity of the result on the same windows.
        notes: Everything unusual that happened, one sentence each.
        versions: Versions of the software.
        repair: What repairing the blocks did; None: nothing was repaired.
        recovery: What training the whole model did; None: it was not trained.
    """

    SCHEMA_VERSION: ClassVar[int] = 2

    kind: Literal["compression"] = "compression"
    schema_version: int = 2
    model: str
    model_fingerprint: str | None
    family: str
    recipe: Recipe
    shared_roles: tuple[str, ...]
    calibration: CalibrationReport | None
    ratio_reached: float
    before: Sizes
    after: Sizes
    method: str
    prediction: Prediction | None
    entries: tuple[EntryReport, ...]
    perplexity_before: tuple[Perplexity, ...]
    perplexity_after: tuple[Perplexity, ...]
    notes: tuple[str, ...]
    versions: dict[str, str]
    repair: RepairReport | None = None
    recovery: RecoveryReport | None = None

    @classmethod
    def migrated(cls, data: dict[str, Any]) -> dict[str, Any]:
        """Return the data of an earlier schema version in the present one."""
        return compression_from_1(data) if data.get("schema_version") == 1 else data

    @property
    def original_is_quantized(self) -> bool:
        """Whether the original's file stores fewer than two bytes per parameter, so that bytes on disk say nothing."""
        on_disk = self.before.bytes_on_disk
        return on_disk is not None and on_disk < 2 * self.before.parameters
