"""What a run found out, as typed data that every verb writes and reads."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from basis_sharing.errors import CheckpointError
from basis_sharing.plan import PlanGroup, Prediction
from basis_sharing.recipe import Form, Recipe

RESULT_FILE = "basis_sharing.json"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Sizes(_Frozen):
    """The size of a model.

    Attributes:
        parameters: Parameters of the whole model, shared ones counted once.
        projection_parameters: Parameters of the weights of the compressible projections (biases not counted).
        projection_multiplications: Multiplications they need per token.
        bytes_in_memory: Bytes of all parameters and buffers, shared storage counted once.
        bytes_on_disk: Bytes of the weight files; None for a model that is not on disk.
    """

    parameters: int
    projection_parameters: int
    projection_multiplications: int
    bytes_in_memory: int
    bytes_on_disk: int | None


class Perplexity(_Frozen):
    """Perplexity of a model on one text.

    Attributes:
        text: Source of the text.
        fingerprint: Fingerprint of the token windows.
        perplexity: exp of the mean negative log-likelihood per token.
        nats_per_token: That mean.
        window_nats: The mean of each window.
        bits_per_byte: The same per byte of text, comparable across tokenizers; None for a file of token windows.
        windows: Number of windows.
        length: Tokens per window.
        tokens: Number of predicted tokens.
        bos: Whether every window starts with the beginning-of-sequence token.
        dtype: Dtype the model ran in.
        notes: What a reader has to know.
    """

    text: str
    fingerprint: str
    perplexity: float
    nats_per_token: float
    window_nats: tuple[float, ...] = ()
    bits_per_byte: float | None
    windows: int
    length: int
    tokens: int
    bos: bool
    dtype: str
    notes: tuple[str, ...] = ()


class GroupReport(_Frozen):
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


class CalibrationReport(_Frozen):
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


class CompressionResult(_Frozen):
    """Everything about one compression that a reader or a program may want to know.

    Attributes:
        schema_version: Version of this schema.
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
    """

    schema_version: Literal[1] = 1
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


def read_result(folder: Path) -> CompressionResult:
    """Read the result that lies in every compressed folder.

    Raises:
        CheckpointError: It cannot be read, or was written by another version of this schema.
    """
    path = folder / RESULT_FILE
    try:
        return CompressionResult.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ValidationError):
        raise CheckpointError(
            f"{path} is damaged or of another version of basis-sharing: compress the model again, or remove the file."
        ) from None
