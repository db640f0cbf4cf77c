"""The result of an estimate: time, memory and disk space of a run, stage by stage."""

from basis_sharing.results.base import Frozen


class StageEstimate(Frozen):
    """One stage of a run.

    Attributes:
        name: Name of the stage.
        seconds: Expected duration.
        memory: Bytes of memory in addition to those that the process has before.
    """

    name: str
    seconds: float
    memory: int


class Estimate(Frozen):
    """The expected time, memory and disk space of a run.

    Attributes:
        stages: The stages in order.
        resident: Bytes of memory the process has before the stages: libraries, and weights not read in place.
        least_memory: The smallest possible ``--max-memory``, in bytes.
        memory: The memory the run may take.
        work_bytes: Bytes of files it keeps while it runs.
        output_bytes: Bytes of the compressed weights, at most.
        windows: Number of calibration windows.
        length: Tokens in each.
        processes: Number of processes that share the work.
    """

    stages: tuple[StageEstimate, ...]
    resident: int
    least_memory: int
    memory: int
    work_bytes: int
    output_bytes: int
    windows: int
    length: int
    processes: int

    @property
    def seconds(self) -> float:
        """Expected duration of the run."""
        return sum(stage.seconds for stage in self.stages)
