"""The result of a compression."""

from typing import Any, ClassVar, Literal

from basis_sharing.plans.plan import AnyEntry, Prediction
from basis_sharing.recipe.recipe import Recipe
from basis_sharing.results.base import Frozen, Result
from basis_sharing.results.measures import Perplexity, Sizes
from basis_sharing.results.migrations import compression_from_1
from basis_sharing.results.recovery import RecoveryReport

RESULT_FILE = "basis_sharing.json"
LANGUAGE_MODELS = "AutoModelForCausalLM"
"""The class of transformers that loads language models; multimodal ones have others."""


class EntryReport(Frozen):
    """One entry of the plan as it was carried out.

    Attributes:
        entry: The entry; its loss is in nats per token, None if the method does not predict it.
        relative_loss: Fraction of the weighted energy of its projections that is lost.
        ridge: Relative ridge that was added to its second moment; 0: none.
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


class RepairReport(Frozen):
    """The outcome of repairing the blocks on the compressed flow.

    Attributes:
        refit: Whether coefficients were refitted.
        minutes: Approximate time limit of training; None: nothing was trained.
        segments: Number of segments of text used, held-out ones included.
        length: Tokens per segment.
        epochs: Largest number of passes over them; 0: nothing was trained.
        before: Relative error of every block's outputs on the held-out segments, before the repair.
        refitted: The same error after the refit.
        after: The same error after the repair.
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
    """The settings, sizes, entries and measurements of one compression.

    Attributes:
        model: The model as it was given.
        model_fingerprint: Fingerprint of its weights and configuration; None for a model given in memory.
        family: Family whose structure was used.
        recipe: The settings.
        shared_roles: Roles whose projections share bases according to the method's table.
        calibration: The calibration text; None if the method needs none.
        ratio_reached: Fraction of parameters removed from the compressible projections.
        before: Sizes of the original.
        after: Sizes of the result.
        method: The method that was used: the recipe's, or that of the plan it names.
        prediction: Expected loss of the plan; None if the method does not predict it.
        entries: The entries of the plan as it was carried out.
        perplexity_before: Perplexity of the original on the texts of the recipe.
        perplexity_after: Perplexity of the result on the same windows.
        notes: Notes on unusual events, one sentence each.
        versions: Versions of the software.
        repair: The outcome of repairing the blocks; None: nothing was repaired.
        recovery: The outcome of training the whole model; None: it was not trained.
        loader: The class of transformers that loads the folder.
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
    loader: str = LANGUAGE_MODELS

    @classmethod
    def migrated(cls, data: dict[str, Any]) -> dict[str, Any]:
        """Return the data of an earlier schema version in the current one."""
        return compression_from_1(data) if data.get("schema_version") == 1 else data

    @property
    def groups(self) -> tuple[EntryReport, ...]:
        """The entries, under the name that they had in 0.1.0."""
        return self.entries

    @property
    def original_is_quantized(self) -> bool:
        """Whether the original's files store fewer than two bytes per parameter, so that their size is no measure."""
        on_disk = self.before.bytes_on_disk
        return on_disk is not None and on_disk < 2 * self.before.parameters
