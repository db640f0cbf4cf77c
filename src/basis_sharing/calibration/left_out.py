"""What is kept and what is left out while a source of text is read."""

from dataclasses import dataclass

from basis_sharing.errors import CorpusError


class OddRecordError(CorpusError):
    """A record cannot be used; the message says which one, why, and what to do.

    Attributes:
        problem: The message without what to do.
    """

    def __init__(self, problem: str, remedy: str) -> None:
        problem = _printable(problem)
        super().__init__(f"{problem}: {_printable(remedy)}.")
        self.problem = problem
        self.remedy = remedy


@dataclass
class _Left:
    """Things left out: how many, and the problem of the first."""

    count: int = 0
    first: str = ""

    def add(self, problem: str, count: int = 1) -> None:
        self.first = self.first or problem
        self.count += count


class Reading:
    """Counts what is kept and what is left out of one source, or of one file of it."""

    def __init__(self, spec: str) -> None:
        self._spec = spec
        self._kept = 0
        self._odd, self._parts, self._files, self._systems, self._cuts = _Left(), _Left(), _Left(), _Left(), _Left()
        self._first_odd: OddRecordError | None = None

    def keep(self) -> None:
        """Count a record that is used."""
        self._kept += 1

    def leave_out(self, error: OddRecordError) -> None:
        """Count a record that cannot be used."""
        self._first_odd = self._first_odd or error
        self._odd.add(error.problem)

    def leave_out_file(self, error: CorpusError) -> None:
        """Count a file of a folder that cannot be used."""
        self._files.add(str(error).partition(": ")[0])

    def leave_out_part(self, kind: str, where: str) -> None:
        """Count a part of a message that is not text, such as a picture."""
        self._parts.add(f"{_printable(kind)} in {where}")

    def fold_system(self, where: str) -> None:
        """Count a system message that was put in front of the first message of the user."""
        self._systems.add(where)

    def cut(self, problem: str) -> None:
        """Note that only the beginning of something is read."""
        self._cuts.add(problem)

    def add(self, part: "Reading") -> None:
        """Add what was counted in one file of the source."""
        self._kept += part._kept
        self._first_odd = self._first_odd or part._first_odd
        for total, one in (
            (self._odd, part._odd),
            (self._parts, part._parts),
            (self._systems, part._systems),
            (self._cuts, part._cuts),
        ):
            total.add(one.first, one.count)

    def check(self) -> None:
        """Check that at least half of the records can be used.

        Raises:
            CorpusError: More than half of them cannot be used; names the first.
        """
        error, odd = self._first_odd, self._odd.count
        if error is None or odd <= self._kept:
            return
        if odd + self._kept == 1:
            raise CorpusError(str(error))
        raise CorpusError(
            f"{error.problem}: {error.remedy} ({odd:,} of the {odd + self._kept:,} records of {self._spec} cannot be "
            "used)."
        )

    def check_files(self, folder: object, found: int) -> None:
        """Check that a folder had something to read.

        Args:
            folder: The folder.
            found: Number of its files that could be read.

        Raises:
            CorpusError: There was none; names the first that could not be read.
        """
        if found:
            return
        if self._files.count:
            raise CorpusError(
                f"none of the {self._files.count:,} files in {folder} can be read as text ({self._files.first}): give "
                "text files, or files of records."
            )
        raise CorpusError(f"{folder} has no files: give a folder with text files in it.")

    def notes(self) -> tuple[str, ...]:
        """Return what the user should know, as sentences."""
        told = []
        if odd := self._odd.count:
            told.append(
                f"{odd:,} of the {odd + self._kept:,} records of {self._spec} {_are(odd)} left out; "
                f"{_first(odd)}{self._odd.first}."
            )
        if files := self._files.count:
            told.append(
                f"{files:,} {_files(files)} in {self._spec} {_are(files)} left out; {_first(files)}{self._files.first}."
            )
        if parts := self._parts.count:
            told.append(
                f"{parts:,} {'part' if parts == 1 else 'parts'} of messages in {self._spec} {_are(parts)} not text and "
                f"left out; {_first(parts)}{self._parts.first}."
            )
        if systems := self._systems.count:
            told.append(
                f"the chat template refuses system messages: {systems:,} of {self._spec} {_are(systems)} put in front "
                "of the first message of the user."
            )
        if self._cuts.count:
            told.append(f"{self._cuts.first}.")
        return tuple(told)


def _are(count: int) -> str:
    return "is" if count == 1 else "are"


def _files(count: int) -> str:
    return "file" if count == 1 else "files"


def _first(count: int) -> str:
    return "" if count == 1 else "the first: "


def _printable(text: str) -> str:
    """Return a text that a record is quoted in, so that it can be printed whatever the record holds."""
    return text.encode("utf-8", "replace").decode("utf-8")
