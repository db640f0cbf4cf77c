"""What one compression did."""

from typing import Literal

from basis_sharing.plans.plan import PlanGroup, Prediction
from basis_sharing.recipe.recipe import Form, Recipe
from basis_sharing.results.base import Frozen, Result
from basis_sharing.results.measures import Perplexity, Sizes
from basis_sharing.results.recovery import RecoveryReport

RESULT_FILE = "basis_sharing.json"


class GroupReport(Frozen):
    """One group of the executed plan.

    Attributes:
        members: Module paths of the projections, the owner of the basis first.
        rank: Number of basis vectors.
        form: How the factors are stored.
        loss: Expected loss rise in nats per token; None where the method does not predict it.
        relative_loss: Share of the weighted energy of the group that is lost.
        ridge: Relative ridge its second moment needed, 0 for none.
    """

    members: tuple[str, ...]
    rank: int
    form: Form
    loss: float | None
    relative_loss: float
    ridge: float

    def planned(self) -> PlanGroup:
        """Return the group as a plan says it."""
        return PlanGroup(members=self.members, rank=self.rank, form=self.form, loss=self.loss)


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


class PropagationReport(Frozen):
    """What mending the blocks on the compressed flow did.

    Attributes:
        refit: Whether coefficients were refitted.
        minutes: How long training might take; None: nothing was trained.
        segments: Segments of text that were used, those to judge by included.
        length: Tokens per segment.
        epochs: Passes over them at most; 0: nothing was trained.
        before: Error of every block on the segments to judge by, in proportion to its states.
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
        shared_roles: Roles whose projections share bases.
        calibration: The calibration text; None where the method needs none.
        ratio_reached: Fraction of parameters removed from the compressible projections.
        before: Sizes of the original.
        after: Sizes of the result.
        method: The method that was used: the recipe's, or that of the plan it names.
        prediction: What the plan was expected to cost; None where the method does not predict it.
        groups: The executed plan.
        perplexity_before: Perplexity of the original on the requested texts.
        perplexity_after: Perplexity of the result on the same windows.
        notes: Everything unusual that happened, one sentence each.
        versions: Versions of the software.
        propagation: What mending the blocks on the compressed flow did; None: nothing was mended.
        recovery: What training the whole model did; None: it was not trained.
    """

    kind: Literal["compression"] = "compression"
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
    groups: tuple[GroupReport, ...]
    perplexity_before: tuple[Perplexity, ...]
    perplexity_after: tuple[Perplexity, ...]
    notes: tuple[str, ...]
    versions: dict[str, str]
    propagation: PropagationReport | None = None
    recovery: RecoveryReport | None = None

    @property
    def original_is_quantized(self) -> bool:
        """Whether the original's file stores fewer than two bytes per parameter, so that bytes on disk say nothing."""
        on_disk = self.before.bytes_on_disk
        return on_disk is not None and on_disk < 2 * self.before.parameters
