"""The plan: the option of every scope, and the expected loss, with reading, writing and checking."""

import json
from hashlib import blake2b
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, PlainSerializer, ValidationError, field_validator

from basis_sharing.costs.base import Cost, shapes_of
from basis_sharing.costs.bytes import Bytes
from basis_sharing.costs.multiplications import Multiplications
from basis_sharing.costs.parameters import Parameters
from basis_sharing.errors import PlanError
from basis_sharing.models.family import Decoder
from basis_sharing.plans.migrations import PLAN_VERSION, migrated
from basis_sharing.recipe.presets import PRESETS
from basis_sharing.runtime.format_basis_sharing import Entry, FormatError, entries_from, entry_from


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)


AnyEntry = Annotated[
    Entry,
    BeforeValidator(entry_from),
    PlainSerializer(lambda entry: entry.to_dict(), return_type=dict[str, Any]),
]
"""An entry of any kind, for pydantic models: validated from its JSON form and serialized to it."""


class PlannedFor(_Frozen):
    """The model a plan was made for.

    Attributes:
        model: Name or path of the model as given by the user.
        fingerprint: Fingerprint of its weights and configuration; None for a model in memory.
        structure: Hash of the names and shapes of its projections, see :func:`structure_of`.
    """

    model: str
    fingerprint: str | None
    structure: str


class PredictedSpeed(_Frozen):
    """The expected time of one forward pass, from measured times of the products.

    Attributes:
        phase: Reading a prompt, or decoding one more token per sequence.
        tokens: Tokens of the prompt.
        batch: Sequences that are decoded at once.
        original: Seconds of the original model.
        seconds: Seconds with the plan.
    """

    phase: Literal["prefill", "decode"]
    tokens: int
    batch: int
    original: float
    seconds: float

    @property
    def speed(self) -> float:
        """Speed as a multiple of the original's."""
        return self.original / self.seconds


class Prediction(_Frozen):
    """The expected loss rise and the expected speed of a plan.

    Attributes:
        loss: Sum of the expected losses of the entries, in nats per token.
        scale: Measured loss rise divided by the expected one, from one measured plan; None: not measured.
        scale_error: Standard error of ``scale`` over the windows; None: not measured, or only one window.
        text: The text that ``scale`` was measured on.
        speeds: The expected speed in every phase; empty if it was not computed.
    """

    loss: float
    scale: float | None = None
    scale_error: float | None = None
    text: str | None = None
    speeds: tuple[PredictedSpeed, ...] = ()

    @property
    def nats_per_token(self) -> float:
        """Estimated loss rise in nats per token, including the measured scale."""
        return self.loss * (1.0 if self.scale is None else self.scale)


class Plan(_Frozen):
    """A plan of a compression; projections that are in no entry stay dense.

    Attributes:
        version: Version of the schema; older plans are migrated on reading, newer ones are refused.
        method: Name of the method, which determines the weighting and the refit.
        ratio: Fraction of the parameters that the plan removes from the compressible projections.
        gradients: Whether errors are weighted with loss gradients, for methods that support it.
        planned_for: The model it was made for; None: any model with these projections.
        prediction: The expected loss rise; None if the method does not predict it.
        entries: The entries; no projection is in two of them.

    Example:
        >>> import basis_sharing
        >>> forecast = basis_sharing.plan("./llama", ratio=0.2, windows=8, baselines=())
        >>> forecast.plan.write("llama-20.json")
        >>> basis_sharing.Plan.read("llama-20.json") == forecast.plan
        True
    """

    version: Literal[2] = PLAN_VERSION
    method: str
    ratio: float
    gradients: bool = False
    planned_for: PlannedFor | None = None
    prediction: Prediction | None = None
    entries: tuple[AnyEntry, ...]

    @field_validator("method")
    @classmethod
    def _known_method(cls, value: str) -> str:
        if value not in PRESETS:
            raise ValueError(f"unknown method {value!r}, choose from {', '.join(PRESETS)}")
        return value

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """Return the plan in a file of any version up to the current one, possibly edited by hand.

        Raises:
            PlanError: The file cannot be read or is not a valid plan; names the place of the mistake.
        """
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
            if not isinstance(data, dict):
                raise ValueError("it is not a plan that `basis-sharing plan` wrote.")
            return cls.model_validate(migrated(data))
        except OSError as error:
            raise PlanError(f"the plan {path} cannot be read ({error.strerror}): check the path.") from None
        except UnicodeDecodeError:
            raise PlanError(f"the plan {path} is not text: give a JSON file that `basis-sharing plan` wrote.") from None
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"]) or "the file"
            message = first["msg"].removeprefix("Value error, ").rstrip(".")
            raise PlanError(f"the plan {path} is not valid at {place}: {message}.") from None
        except json.JSONDecodeError as error:
            raise PlanError(f"the plan {path} is not valid JSON ({error}): check the last edit.") from None
        except ValueError as error:
            raise PlanError(f"the plan {path} cannot be used: {error}") from None

    def write(self, path: str | Path) -> None:
        """Write the plan as JSON, with one entry per line to make it easy to edit.

        Raises:
            OSError: The file cannot be written.
        """
        data = self.model_dump(mode="json")
        entries = ",\n".join("    " + json.dumps(entry) for entry in data.pop("entries"))
        head = json.dumps(data, indent=2).removesuffix("\n}")
        Path(path).write_text(f'{head},\n  "entries": [\n{entries}\n  ]\n}}\n', encoding="utf-8")

    def check(self, decoder: Decoder) -> None:
        """Check that the plan fits a model.

        Raises:
            PlanError: The plan is empty or was made for another structure, or a projection is unknown, used twice, or
                does not fit its entry.
        """
        if not self.entries:
            raise PlanError("the plan has no entries: nothing would be compressed.")
        if self.planned_for is not None and self.planned_for.structure != structure_of(decoder):
            raise PlanError(
                f"the plan was made for {self.planned_for.model}, whose projections have other names or shapes: plan "
                "this model again."
            )
        known = decoder.by_name
        unknown = next((name for entry in self.entries for name in entry.members if name not in known), None)
        if unknown is not None:
            raise PlanError(f"the plan names {unknown}, which this model does not have or cannot compress.")
        try:
            for entry in entries_from(self.entries):
                entry.fit(shapes_of([known[name] for name in entry.members]))
        except FormatError as error:
            raise PlanError(f"the plan does not fit this model: {error}") from None

    def cost(self, decoder: Decoder, cost: Cost) -> float:
        """Return the cost of the compressible projections under the plan in one currency."""
        known = decoder.by_name
        used = {name for entry in self.entries for name in entry.members}
        total = cost.dense([part for part in decoder.parts if part.name not in used])
        for entry in self.entries:
            total += cost.of([known[name] for name in entry.members], entry)
        return total

    def bytes(self, decoder: Decoder, itemsize: int) -> int:
        """Return the bytes of the compressible projections under the plan, ``itemsize`` for a number of the model."""
        return int(self.cost(decoder, Bytes(itemsize)))

    def parameters(self, decoder: Decoder) -> int:
        """Return the parameters of the compressible projections under the plan."""
        return int(self.cost(decoder, Parameters()))

    def multiplications(self, decoder: Decoder) -> int:
        """Return the multiplications per token of the compressible projections under the plan."""
        return int(self.cost(decoder, Multiplications()))

    def removed_fraction(self, decoder: Decoder) -> float:
        """Return the fraction of parameters that the plan removes from the compressible projections."""
        return 1 - self.parameters(decoder) / dense_parameters(decoder)


def dense_parameters(decoder: Decoder) -> int:
    """Return the parameters of all compressible projections and experts."""
    return Parameters().dense(decoder.parts)


def dense_multiplications(decoder: Decoder) -> int:
    """Return the multiplications per token of all compressible projections and experts."""
    return Multiplications().dense(decoder.parts)


def structure_of(decoder: Decoder) -> str:
    """Return a hash of the names and shapes of all projections."""
    lines = "\n".join(f"{p.name} {p.d_in} {p.d_out}" for p in decoder.projections)
    return blake2b(lines.encode(), digest_size=8).hexdigest()


def spans_blocks(entry: Entry, decoder: Decoder) -> bool:
    """Return whether the members of an entry are in several decoder blocks."""
    return len({decoder.by_name[name].block for name in entry.members}) > 1
