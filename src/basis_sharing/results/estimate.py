"""What a run will need: time, memory and disk, stage by stage."""

from basis_sharing.results.base import Frozen
from basis_sharing.run.machine import too_little


class StageEstimate(Frozen):
    """One stage of a run.

    Attributes:
        name: What is done.
        seconds: How long it will take.
        memory: Bytes it needs besides what the process has anyway.
    """

    name: str
    seconds: float
    memory: int


class Estimate(Frozen):
    """What a run will need.

    Attributes:
        stages: The stages in their order.
        resident: Bytes of memory the process has before they begin: libraries, and weights that are no files here.
        least_memory: The smallest ``--max-memory`` that can work.
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
        """How long the run will take."""
        return sum(stage.seconds for stage in self.stages)

    @property
    def refusal(self) -> str:
        """What to say where the memory is too little."""
        return too_little(self.memory, self.least_memory)
