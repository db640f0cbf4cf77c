"""Tables of measured times: one file per machine, dtype and version of PyTorch, to which what is missing is added."""

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from basis_sharing.costs import products
from basis_sharing.costs.products import Operation
from basis_sharing.costs.stopwatch import Measured, Reference
from basis_sharing.errors import RecipeError
from basis_sharing.models.source import dtype_name
from basis_sharing.run.devices import describe_device
from basis_sharing.run.durable import write_text
from basis_sharing.run.files import write_file
from basis_sharing.run.processes import Processes
from basis_sharing.run.progress import ProgressCallback, silent

_VERSION = 2
_BUSY = (
    "other programs kept this machine busy while times were measured, so that predicted speeds may be wrong: plan "
    "again when it is idle, which measures these times anew."
)


@dataclass(frozen=True)
class TimedOn:
    """What times depend on.

    Attributes:
        device: Type of the device, ``"cpu"``, ``"cuda"`` or ``"mps"``.
        name: Name of the processor or graphics card.
        threads: Threads of PyTorch on a CPU; 0 on other devices.
        dtype: Dtype of the products.
        version: Version of PyTorch.
        working_set: Bytes of weights that are read in turns; at most a few times the caches, which do not matter then.
    """

    device: str
    name: str
    threads: int
    dtype: str
    version: str
    working_set: int

    @classmethod
    def here(cls, device: torch.device, dtype: torch.dtype, weights: int) -> "TimedOn":
        """Return this machine with a device and the present number of threads, for a model of so many bytes."""
        threads = torch.get_num_threads() if device.type == "cpu" else 0
        working_set = min(products.beyond_caches(device), 1 << (weights - 1).bit_length())
        return cls(device.type, describe_device(device), threads, dtype_name(dtype), torch.__version__, working_set)

    def __str__(self) -> str:
        threads = f", {self.threads} threads" if self.threads else ""
        return f"{self.name} ({self.device}{threads}, {self.dtype}, torch {self.version})"


def default_file(machine: TimedOn) -> Path:
    """Return the file in the user's cache folder that keeps the times of a machine."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    digest = hashlib.blake2b(json.dumps(asdict(machine)).encode(), digest_size=6).hexdigest()
    return cache / "basis-sharing" / "times" / f"{machine.device}-{machine.dtype}-{digest}.json"


@dataclass
class TimeTable:
    """Measured times on one machine.

    Attributes:
        machine: The machine.
        device: The device on which missing times are measured; None: it is not here, and nothing can be measured.
        file: The file in which they are kept; None: they are not kept.
        progress: Receives progress events of measurements.
        notes: Notes for the user, one sentence each.
        times: The times by name; unsteady ones are used, but not kept.
        processes: The processes of the run; the first one measures and writes for all of them.
    """

    machine: TimedOn
    device: torch.device | None = None
    file: Path | None = None
    progress: ProgressCallback = silent
    notes: list[str] = field(default_factory=list)
    times: dict[str, Measured] = field(default_factory=dict)
    processes: Processes = field(default_factory=Processes)

    @classmethod
    def opened(cls, machine: TimedOn, device: torch.device, file: Path | None) -> "TimeTable":
        """Return the table of this machine, with the times that are kept in a file.

        Args:
            machine: This machine.
            device: Its device.
            file: The file; None: the one in the user's cache folder.

        Raises:
            RecipeError: The file cannot be read, or holds no times.
        """
        table = cls(machine, device, file or default_file(machine))
        assert table.file is not None
        if not table.file.exists():
            return table
        try:
            made_on, times = read_times(table.file)
        except RecipeError:
            if file is not None:
                raise
            return table  # a damaged file of the cache is replaced
        if made_on == machine:
            table.times = times
        else:
            table.notes.append(
                f"the times in {table.file} were measured on {made_on}; this machine is {machine}: measured anew."
            )
        return table

    @classmethod
    def elsewhere(cls, file: Path) -> "TimeTable":
        """Return the table in a file that another machine has written, to which nothing can be added.

        Raises:
            RecipeError: The file cannot be read, or holds no times.
        """
        machine, times = read_times(file)
        return cls(machine, None, file, times=times)

    def seconds(self, operation: Operation) -> float:
        """Return the time of an operation in seconds, which is measured if it is not in the table."""
        if operation.key not in self.times:
            self.measure([operation])
        return self.times[operation.key].seconds

    def measure(self, operations: Iterable[Operation]) -> None:
        """Measure the operations that are not in the table.

        Raises:
            RecipeError: Some are missing, and their device is not here.
        """
        self._measure([one for one in operations if one.key not in self.times], thorough=False)

    def measure_again(self, operations: Iterable[Operation]) -> float:
        """Measure those operations in many rounds that were not, where the device is here.

        A planner that chooses the fastest of many options chooses those whose times erred to its liking: what it has
        chosen is measured again.

        Returns:
            The largest relative change of a time.
        """
        quick = [one for one in dict.fromkeys(operations) if not self._is_thorough(one)]
        if self.device is None or not quick:
            return 0.0
        before = {one: self.times[one.key].seconds for one in quick if one.key in self.times}
        self._measure(quick, thorough=True)
        longest = max(time.seconds for time in map(self._time, quick))
        return max((abs(self._time(one).seconds - time) / longest for one, time in before.items()), default=0.0)

    def _time(self, operation: Operation) -> Measured:
        return self.times[operation.key]

    def _is_thorough(self, operation: Operation) -> bool:
        return operation.key in self.times and self._time(operation).thorough

    def _measure(self, operations: Iterable[Operation], *, thorough: bool) -> None:
        missing = list(dict.fromkeys(operations))
        if not missing:
            return
        device, machine = self._present(missing[0].key), self.machine
        dtype = getattr(torch, machine.dtype)

        def measured() -> dict[str, Measured]:
            references = {products.reference_of(one.rows) for one in missing}
            known = {one: self.times[one.key].seconds for one in references if one.key in self.times}
            working_set, progress = machine.working_set, self.progress
            found = products.measured_operations(
                missing, device, dtype, working_set, progress, known, thorough=thorough
            )
            return {one.key: time for one, time in found.items()}

        self._add(measured)

    def reference(self, rows: int) -> Reference:
        """Return the product in whose time passes with so many rows are measured.

        Raises:
            RecipeError: Its time is missing, and its device is not here.
        """
        seconds, machine = self.seconds(products.reference_of(rows)), self.machine
        device = self._present(products.reference_of(rows).key)
        return products.reference_product(rows, device, getattr(torch, machine.dtype), machine.working_set, seconds)

    def of_model(self, name: str, measure: Callable[[torch.device], Measured]) -> float:
        """Return the time of a whole model in seconds, which is measured if it is not in the table.

        Args:
            name: Names the model and what it does.
            measure: Measures it on a device.

        Raises:
            RecipeError: It is missing, and its device is not here.
        """
        if name not in self.times:
            device = self._present(name)
            self._add(lambda: {name: measure(device)})
        return self.times[name].seconds

    def _add(self, measured: Callable[[], dict[str, Measured]]) -> None:
        """Add times that the first process measures, and keep the steady ones in the file.

        Raises:
            OutputError: The disk is full or fails.
        """
        first = self.processes.first
        times = self.processes.given_by(0, measured() if first else None)
        self.times.update(times)
        if not all(time.steady for time in times.values()) and _BUSY not in self.notes:
            self.notes.append(_BUSY)
        if self.file is not None and first:
            kept = {name: asdict(time) for name, time in self.times.items() if time.steady}
            data = {"version": _VERSION, "machine": asdict(self.machine), "times": kept}
            text = json.dumps(data, indent=1) + "\n"
            write_file(self.file, lambda path: write_text(path, text))

    def _present(self, missing: str) -> torch.device:
        if self.device is None:
            raise RecipeError(
                f"the times in {self.file} have none for {missing}, and this machine has no {self.machine.device} to "
                f"measure it: plan the same model with --times {self.file} where there is one."
            )
        return self.device


def read_times(file: Path) -> tuple[TimedOn, dict[str, Measured]]:
    """Return the machine and the times in a file.

    Raises:
        RecipeError: The file cannot be read, or holds no times.
    """
    try:
        data: Any = json.loads(file.read_text(encoding="utf-8"))
        machine, times, version = data["machine"], data["times"], data["version"]
        if version > _VERSION:
            raise RecipeError(f"the times {file} are of a newer version of basis-sharing: update it.")
        if version < _VERSION:
            raise RecipeError(
                f"the times {file} are of an older version of basis-sharing, which took them without a reference: "
                "remove the file, and they are measured anew."
            )
        return TimedOn(**machine), {str(name): Measured(**time) for name, time in times.items()}
    except OSError as error:
        raise RecipeError(f"the times {file} cannot be read ({error.strerror}): check the path.") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise RecipeError(f"{file} is no file of times that basis-sharing wrote: remove it, or give another.") from None
