"""The stages of a run: the protocol, and estimates of what a stage needs from shapes alone.

Memory is estimated generously, because a run that exceeds it is killed; time is accurate to about a factor of two, from
speeds that are measured for a second.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch

from basis_sharing.models.family import Decoder, Experts, Projection
from basis_sharing.run.machine import Machine, taken_memory

if TYPE_CHECKING:
    from basis_sharing.run.run import Run

_MARGIN, _ALLOWANCE = 1.15, 96 * 2**20
_STEP_SECONDS = 2e-4  # to round one input of all outputs
_SINGLE = 2  # speed of fp32 products, in multiples of that of fp64
POSITIONS = 512  # positions whose logits are in memory at a time


@dataclass(frozen=True)
class Needs:
    """The time, memory and disk space that a stage needs.

    Attributes:
        name: Name of the work.
        seconds: Expected duration.
        memory: Bytes of memory in addition to those that the process has before.
        work_bytes: Bytes of files that it keeps until the run ends.
    """

    name: str
    seconds: float = 0.0
    memory: int = 0
    work_bytes: int = 0


class Stage(Protocol):
    """A stage of a run; its constructor takes its settings and the stages whose results it uses."""

    def needs(self, shapes: "Shapes") -> Iterable[Needs]:
        """Return the needs of the stage; empty if it has nothing to do."""
        ...

    def run(self, run: "Run") -> None:
        """Do the work; the results are attributes of the stage."""
        ...


def carry_out(stages: Sequence[Stage], run: "Run") -> None:
    """Run stages in order."""
    for stage in stages:
        stage.run(run)


def needs_of(stages: Sequence[Stage], shapes: "Shapes") -> list[Needs]:
    """Return the needs of all stages, in order."""
    return [needs for stage in stages for needs in stage.needs(shapes)]


def least_memory(needs: Sequence[Needs], resident: int | None = None) -> int:
    """Return the smallest memory in bytes with which stages can run.

    Args:
        needs: The needs of the stages.
        resident: Bytes the process has before the stages run; None: the bytes it has now.
    """
    most = max((stage.memory for stage in needs), default=0)
    return (taken_memory() if resident is None else resident) + int(_MARGIN * most) + _ALLOWANCE


@dataclass(frozen=True)
class Speeds:
    """The speed of a machine.

    Attributes:
        products: Operations per second of matrix products in the dtype of the calibration.
        algebra: The same in fp64, where matrices are decomposed.
        eigenvalues: n^3 per second for the eigenvalues of a symmetric n x n matrix.
        eigenvectors: The same with eigenvectors.
    """

    products: float
    algebra: float
    eigenvalues: float
    eigenvectors: float

    @classmethod
    def tried(cls, machine: Machine, dtype: torch.dtype) -> "Speeds":
        """Return the speeds measured on small matrices."""
        a = torch.randn(1024, 1024, device=machine.device).to(dtype)
        b = torch.randn(512, 512, device=machine.algebra, dtype=torch.float64)
        symmetric = b @ b.T
        return cls(
            products=2 * 1024**3 / _seconds(lambda: (a @ a).sum().item()),
            algebra=2 * 512**3 / _seconds(lambda: (b @ b).sum().item()),
            eigenvalues=512**3 / _seconds(lambda: torch.linalg.eigvalsh(symmetric).sum().item()),
            eigenvectors=512**3 / _seconds(lambda: torch.linalg.eigh(symmetric)[0].sum().item()),
        )


def _seconds(action: Callable[[], Any]) -> float:
    """Return the shortest duration of a few runs, in seconds."""
    action()
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


class Shapes:
    """Operations and bytes of the stages, from the shapes of a model and of its calibration text.

    Args:
        model: The model, real or on the meta device.
        decoder: Its decoder with the projections to compress.
        machine: The machine of the run.
        windows: Number of calibration windows of all processes.
        length: Tokens in each.
        dtype: Dtype of the weights.
        calibrated_in: Dtype of the calibration pass.
        twin: Bytes of a second copy of the original; 0 if it is read in place from its files.
        speeds: Speeds of the machine; None: all times are 0.
    """

    def __init__(
        self,
        model: Any,
        decoder: Decoder,
        machine: Machine,
        *,
        windows: int = 0,
        length: int = 0,
        dtype: torch.dtype | None = None,
        calibrated_in: torch.dtype = torch.float32,
        twin: int = 0,
        speeds: Speeds | None = None,
    ) -> None:
        config = model.config.get_text_config()
        self.decoder, self.machine, self.twin, self.speeds = decoder, machine, twin, speeds
        self.processes = machine.processes.count
        self.windows, self.length = -(-windows // self.processes), length
        self.all_windows = windows
        self.dtype: torch.dtype = dtype or model.dtype
        self.calibrated_in = calibrated_in
        self.vocabulary: int = config.vocab_size
        self.hidden: int = config.hidden_size
        blocks = [model.get_submodule(path) for path in decoder.blocks]
        self.block_parameters: list[int] = [sum(p.numel() for p in block.parameters()) for block in blocks]
        self.outside = sum(p.numel() for p in model.parameters()) - sum(self.block_parameters)
        eager = getattr(config, "_attn_implementation", None) == "eager"
        self.scores: int = getattr(config, "num_attention_heads", 0) * length**2 if eager else 0
        self.inputs = {(p.block, p.input): p.d_in for p in decoder.measured}
        idle = sum(e.d_in * e.d_out * (e.count - e.active) // e.count for e in decoder.experts)
        self.multiplied = sum(self.block_parameters) - idle

    @property
    def tokens(self) -> int:
        """Calibration tokens of this process."""
        return self.windows * self.length

    @property
    def forward(self) -> int:
        """Operations of a forward pass of the blocks over the calibration text."""
        return self.forward_over(self.tokens, self.length)

    @property
    def head(self) -> int:
        """Operations of the output head over the calibration text."""
        return self.head_over(self.tokens)

    @property
    def input_moments(self) -> int:
        """Operations for the second moments of all inputs."""
        return sum(self.tokens * width**2 for width in self.inputs.values())

    @property
    def output_moments(self) -> int:
        """Operations for the second moments of all outputs."""
        return sum(self.tokens * p.d_out**2 for p in self.decoder.measured)

    @property
    def states_bytes(self) -> int:
        """Bytes of the hidden states of all windows at one depth."""
        return self.tokens * self.hidden * self.calibrated_in.itemsize

    @property
    def widest_block(self) -> list[Projection]:
        """What is measured in the block where it is largest."""
        blocks = ([p for p in self.decoder.measured if p.block == at] for at in range(len(self.decoder.blocks)))
        return max(blocks, key=lambda projections: sum(p.d_in * p.d_out for p in projections))

    def forward_over(self, tokens: int, length: int) -> int:
        """Return the operations of a forward pass of the blocks over tokens in windows of a length."""
        return 2 * tokens * (self.multiplied + 2 * length * self.hidden * len(self.block_parameters))

    def head_over(self, tokens: int) -> int:
        """Return the operations of the output head over tokens."""
        return 2 * tokens * self.vocabulary * self.hidden

    def forward_memory(self, length: int) -> int:
        """Return the bytes of activations and logits of a pass over one window in the dtype of the weights."""
        widest = max(p.d_in + p.d_out for p in self.decoder.measured)
        return length * self.dtype.itemsize * (6 * self.hidden + 3 * widest) + 8 * POSITIONS * self.vocabulary

    def seconds(self, operations: float) -> float:
        """Return the seconds that matrix products of so many operations in the dtype of the calibration take."""
        return 0.0 if self.speeds is None else operations / self.speeds.products

    def solving_seconds(self, p: Projection) -> float:
        """Return the seconds of the decomposition of one projection."""
        if self.speeds is None:
            return 0.0
        products = 2 * p.d_in * p.d_out * (p.d_in + p.d_out) + p.d_in**3
        return products / self.speeds.algebra + min(p.d_in, p.d_out) ** 3 / self.speeds.eigenvectors

    def measuring_seconds(self, p: Projection) -> float:
        """Return the seconds to measure what a projection loses at every rank: fp32 products, fp64 eigenvalues."""
        if self.speeds is None:
            return 0.0
        small = min(p.d_in, p.d_out)
        single = 2 * p.d_in * p.d_out * (p.d_in + p.d_out)
        return (single / _SINGLE + 4 * small**3) / self.speeds.algebra + small**3 / self.speeds.eigenvalues

    def sharing_seconds(self, p: Projection) -> float:
        """Return the seconds to measure what a projection and that of the next block lose with one basis."""
        if self.speeds is None:
            return 0.0
        order = min(p.d_in, 2 * p.d_out)
        crossed = 4 * p.d_in**2 * p.d_out if order < p.d_in else 0
        return (crossed + 18 * order**3) / self.speeds.algebra + order**3 / self.speeds.eigenvectors

    def rounding_seconds(self, p: Projection) -> float:
        """Return the seconds to round one projection, errors made up for."""
        if self.speeds is None:
            return 0.0
        operations = 2 * p.d_in**2 * p.d_out / _SINGLE + 2 * p.d_in**3
        return operations / self.speeds.algebra + p.d_in * _STEP_SECONDS

    def refitting_seconds(self, p: Projection) -> float:
        """Return the seconds of the products in the refit of one projection's coefficients."""
        return 0.0 if self.speeds is None else 2 * p.d_in * p.d_out * (p.d_in + p.d_out) / self.speeds.algebra

    def narrowing_seconds(self, experts: Experts) -> float:
        """Return the seconds of the products that make experts narrower."""
        return 0.0 if self.speeds is None else 2 * experts.d_in**2 * experts.d_out / self.speeds.algebra

    def expert_seconds(self, experts: Experts, seconds: Callable[[Projection], float]) -> float:
        """Return the seconds for the matrices of all experts of a block, given those for one matrix."""
        alike = (
            Projection(experts.name, experts.block, experts.role, name, *size, bias=False, transposed=False)
            for name, size in experts.sizes.items()
        )
        return experts.count * sum(map(seconds, alike))

    def block_memory(self, *, gradients: bool) -> int:
        """Return the bytes of the calibration pass through one block, with its statistics.

        Args:
            gradients: Whether the pass includes a backward pass.
        """
        projections, size = self.widest_block, self.calibrated_in.itemsize
        inputs = {p.input: p.d_in for p in projections}
        moments = sum(4 * width**2 for width in inputs.values())
        copies = max(self.block_parameters) * size if self.calibrated_in != self.dtype else 0
        if not gradients:
            working = self.length * size * (6 * self.hidden + 3 * max(p.d_in + p.d_out for p in projections))
            return moments + copies + working + 2 * size * self.scores
        moments += sum(4 * p.d_out**2 for p in projections)
        working = self.length * size * (8 * self.hidden + 2 * sum(p.d_in + p.d_out for p in projections))
        logits = 3 * 4 * POSITIONS * self.vocabulary
        if self.calibrated_in != self.dtype:
            logits += self.outside * size
        return max(moments + copies + working + 4 * size * self.scores, logits)

    def solving_memory(self, *, whitened: bool, outputs: bool) -> int:
        """Return the bytes of the largest problem: one matrix with its weightings, and the factors of its group.

        Args:
            whitened: Whether errors are weighted on the input side.
            outputs: Whether they are weighted on the output side.
        """
        most = 0
        for p in self.decoder.measured:
            small = min(p.d_in, p.d_out)
            weightings = 3 * p.d_in**2 * whitened + 2 * p.d_out**2 * outputs
            most = max(most, 8 * (weightings + 5 * small**2 + 4 * p.d_in * p.d_out))
        return most
