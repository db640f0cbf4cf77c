"""The planner's weighting without gradients: one measured number per projection, in nats per token."""

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar, Self

import torch
from torch import Tensor

from basis_sharing.calibration.sensitivity import measure_sensitivity
from basis_sharing.calibration.text import CalibrationText
from basis_sharing.linalg.truncation import Member
from basis_sharing.models.family import Projection
from basis_sharing.run.run import Run
from basis_sharing.run.stages import Needs, Shapes
from basis_sharing.run.work import measured
from basis_sharing.weightings.base import register
from basis_sharing.weightings.loss import InNats

_TOKENS = 1024  # number of tokens that every projection is measured on


@register
@dataclass
class Sensitivity(InNats):
    """H = h I, with h the sensitivity: nats per token for a unit of output error.

    Attributes:
        sensitivity: h of every projection.
    """

    name: ClassVar[str] = "sensitivity"

    sensitivity: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    @contextmanager
    def collected(cls, run: Run, text: CalibrationText | None) -> Iterator[Self]:
        """Collect second moments, measure the sensitivities with them, and yield the weighting."""
        assert text is not None
        with super().collected(run, text) as weighting:
            weighting.sensitivity = _measured(weighting, run, text)
            yield weighting

    @classmethod
    def needs(cls, shapes: Shapes) -> Iterable[Needs]:
        """Yield what collecting the second moments and measuring the sensitivities need."""
        yield from super().needs(shapes)
        share = _TOKENS / max(shapes.tokens, 1) * len(shapes.decoder.projections) / 2
        work = (shapes.forward + len(shapes.block_parameters) * shapes.head) * share
        yield Needs("sensitivities", shapes.seconds(work), shapes.block_memory(gradients=False))

    def output_weighting(self, projection: Projection) -> Tensor | None:
        """Return H, shape ``[d_out, d_out]``, fp64."""
        identity = torch.eye(projection.d_out, dtype=torch.float64, device=self.device)
        return self.sensitivity[projection.name] * identity

    def output_scale(self, projection: Projection) -> float | None:
        """Return h."""
        return self.sensitivity[projection.name]


def _measured(weighting: Sensitivity, run: Run, text: CalibrationText) -> dict[str, float]:
    """Return the sensitivities of all projections, measured or from the cache in the work folder."""
    decoder = run.collected
    unscaled = replace(weighting, sensitivity={p.name: 1.0 for p in decoder.projections})

    def member_of(projection: Projection) -> Member:
        return unscaled.problem(run.model, [projection])[0]

    def write(sensitivity: dict[str, float], folder: Path) -> None:
        (folder / "sensitivity.json").write_text(json.dumps(sensitivity), encoding="utf-8")

    return measured(
        run.work,
        "sensitivity",
        text.about(decoder),
        lambda: measure_sensitivity(
            run.model,
            decoder,
            member_of,
            text.input_ids,
            dtype=text.dtype,
            machine=run.machine,
            progress=run.progress,
        ),
        write=write,
        read=lambda folder: json.loads((folder / "sensitivity.json").read_text(encoding="utf-8")),
    )
