"""The text that blocks are refitted and trained on: short segments, some of them held out."""

from dataclasses import dataclass

import torch
from torch import Tensor

from basis_sharing.errors import RecipeError
from basis_sharing.run.processes import Processes

SEGMENT = 512
REFIT_SEGMENTS = 48  # for solving for the coefficients, held-out ones included; twice as many gave no improvement
HELD_OUT = 8  # one segment in 8
FEWEST_SEGMENTS = 2 * HELD_OUT


@dataclass(frozen=True)
class RepairSchedule:
    """How much text is used, and for how long; kept so that an interrupted run resumes with the same schedule.

    Attributes:
        segments: Number of segments of text, held-out ones included.
        epochs: Largest number of passes over them; 0: no training.
    """

    segments: int
    epochs: int

    @property
    def held_out(self) -> list[int]:
        """Indices of the held-out segments."""
        return list(range(HELD_OUT - 1, self.segments, HELD_OUT))

    @property
    def training(self) -> list[int]:
        """Indices of the training segments."""
        return [index for index in range(self.segments) if index % HELD_OUT != HELD_OUT - 1]


@dataclass(frozen=True)
class Share:
    """The segments of one process: the training segments, then the held-out ones.

    Attributes:
        segments: Their indices in the text.
        learning: Number of training segments among them.
    """

    segments: list[int]
    learning: int

    @property
    def training(self) -> list[int]:
        """Positions of the training segments in ``segments``."""
        return list(range(self.learning))

    @property
    def held_out(self) -> list[int]:
        """Positions of the held-out segments in ``segments``."""
        return list(range(self.learning, len(self.segments)))


def own_share(schedule: RepairSchedule, processes: Processes) -> Share:
    """Return the segments of this process."""
    training = list(processes.own(schedule.training))
    return Share([*training, *processes.own(schedule.held_out)], len(training))


def segment_length(length: int) -> int:
    """Return the number of tokens per segment for windows of ``length`` tokens."""
    return min(SEGMENT, length)


def segment_count(windows: int, length: int, bos: bool) -> int:
    """Return the number of segments in ``windows`` windows of ``length`` tokens, the first being BOS with ``bos``."""
    return windows * ((length - bos) // (segment_length(length) - bos))


def check_text(input_ids: Tensor, bos: bool, rank: int = 0) -> None:
    """Make sure that a text suffices to train blocks, or to solve for coefficients.

    Args:
        input_ids: Windows of text, shape ``[windows, length]``.
        bos: Whether windows start with a beginning-of-sequence token.
        rank: The highest rank of the coefficients to solve for; 0: no refit.

    Raises:
        RecipeError: The text is too short.
    """
    windows, longest = input_ids.shape
    count, length = segment_count(windows, longest, bos), segment_length(longest)
    if count < FEWEST_SEGMENTS:
        raise RecipeError(
            f"the calibration text has {count} segments of {length} tokens, but training or refitting blocks "
            f"needs {FEWEST_SEGMENTS}: use more windows (--windows)."
        )
    tokens = length * len(RepairSchedule(min(count, REFIT_SEGMENTS), 0).training)
    if tokens < rank:
        raise RecipeError(
            f"{tokens} tokens cannot determine coefficients for {rank} basis vectors: use more windows (--windows)."
        )


def cut_segments(input_ids: Tensor, seed: int, bos: bool) -> Tensor:
    """Return the text in random order as segments, shape ``[segments, length]``.

    Raises:
        RecipeError: The text is too short.
    """
    check_text(input_ids, bos)
    length = segment_length(input_ids.shape[1]) - bos
    body = input_ids[:, bos:]
    pieces = body[:, : body.shape[1] // length * length].reshape(-1, length)
    if bos:
        pieces = torch.cat([input_ids[:1, :1].expand(len(pieces), 1), pieces], dim=1)
    return pieces[torch.randperm(len(pieces), generator=torch.Generator().manual_seed(seed))]
