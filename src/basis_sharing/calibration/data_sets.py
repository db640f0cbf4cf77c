"""Data sets of the Hugging Face hub, and folders of the same form, read by the package ``datasets``."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from basis_sharing.calibration.left_out import Reading
from basis_sharing.calibration.records import Record
from basis_sharing.calibration.tables import check_column, pruned, require
from basis_sharing.errors import CorpusError

Split = Literal["train", "test"]

SYNTAX = "hub:NAME[:CONFIG][@SPLIT][#COLUMN]"
_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)
_MOST_ROWS = 20_000
_INSTALL = "install the extra (pip install 'basis-sharing[hub]')"
_SAVED = ("dataset_info.json", "dataset_dict.json")

_C4_FILES = {"train": "en/c4-train.00000-of-01024.json.gz", "test": "en/c4-validation.00000-of-00008.json.gz"}
_C4_DOCUMENTS = {"train": 8000, "test": 1100}  # 1,100 is what GPTQ evaluates on


@dataclass(frozen=True)
class DataSet:
    """A data set on the hub, or in a local folder.

    Attributes:
        name: Its name on the hub, or the folder.
        config: Its configuration (subset); None: the only one.
        split: The split; None: ``train`` to calibrate on, ``test`` to evaluate on.
    """

    name: str
    config: str | None = None
    split: str | None = None

    @property
    def folder(self) -> Path | None:
        """The folder; None if the data set is on the hub."""
        return path if (path := Path(self.name).expanduser()).is_dir() else None


def parse_data_set(spec: str) -> tuple[DataSet, str | None]:
    """Return the data set that ``NAME[:CONFIG][@SPLIT][#COLUMN]`` names, and the column.

    Raises:
        CorpusError: This is no name of a data set, or the package ``datasets`` is not installed.
    """
    name, found = spec, dict[str, str | None]()
    for mark in ("#", "@", ":"):
        found[mark] = None
        if mark in name and not Path(name).expanduser().is_dir():
            name, _, found[mark] = name.rpartition(mark)
    data_set = DataSet(name, found[":"], found["@"])
    if "" in (name, *found.values()) or not (data_set.folder or _NAME.fullmatch(name)):
        raise CorpusError(f"'hub:{spec}' does not name a data set: write {SYNTAX}, NAME as on the hub or a folder.")
    require("datasets", f"hub:{name}", f"{_INSTALL}, or give the data set as a file")
    return data_set, found["#"]


def names_data_set(name: str) -> bool:
    """Return whether a name has the form ``OWNER/NAME`` of the hub."""
    return "/" in name and _NAME.fullmatch(name) is not None


def data_set_records(
    data_set: DataSet, column: str | None, split: Split, reading: Reading, known: frozenset[str]
) -> Iterator[Record]:
    """Yield the first 20,000 rows of a data set as records.

    Args:
        data_set: The data set.
        column: The column that is needed; None: those in ``known``, or if there is none, all.
        split: The split if the data set names none.
        reading: Notes that there are more rows, if there are.
        known: Names of columns that are read without being asked for.

    Raises:
        CorpusError: The data set cannot be read, or has no such configuration, split or column.
    """
    chosen = data_set.split or split
    name = f"{data_set.name}@{chosen}"
    try:
        rows = _rows(data_set, chosen)
        columns = list(rows.column_names or ())
        if columns:
            check_column(column, columns, name)
            wanted = [column] if column is not None else [one for one in columns if one in known] or columns
            rows = rows.select_columns(wanted)
        for number, row in enumerate(islice(rows, _MOST_ROWS + 1), start=1):
            if number > _MOST_ROWS:
                reading.cut(f"of {name} the first {_MOST_ROWS:,} rows are read")
                return
            yield f"row {number} of {name}", pruned(row)
    except CorpusError:
        raise
    except Exception as error:  # the libraries underneath raise many kinds of errors
        where = "" if data_set.folder else "the network, "
        raise CorpusError(
            f"{name} cannot be read ({_reason(error)}): check {where}the name, the configuration and the split "
            f"({SYNTAX})."
        ) from error


def published_rows(kind: str, split: Split) -> list[str]:
    """Return the texts of C4 or WikiText-2 from the hub, one string per row.

    Raises:
        CorpusError: The hub cannot be reached, or the package ``datasets`` is not installed.
    """
    remedy = f"{_INSTALL}, or give a local file as {kind}:FILE."
    try:
        from datasets import load_dataset
    except ImportError:
        raise CorpusError(f"{kind} without a file is read from the Hugging Face hub by `datasets`: {remedy}") from None
    try:
        if kind == "c4":
            rows = load_dataset("allenai/c4", data_files={split: _C4_FILES[split]}, split=split, streaming=True)
            return [row["text"] for row in islice(rows, _C4_DOCUMENTS[split])]
        return list(load_dataset("Salesforce/wikitext", "wikitext-2-raw-v1", split=split)["text"])
    except Exception as error:  # the libraries underneath raise many kinds of errors; the remedy is the same for all
        raise CorpusError(
            f"{kind} cannot be fetched from the Hugging Face hub ({_reason(error)}): check the network and {remedy}"
        ) from error


def _rows(data_set: DataSet, split: str) -> Any:
    """Return the rows of a split: streamed, or from the cache where the hub must not be asked."""
    import datasets

    folder = data_set.folder
    if folder is not None and any((folder / name).is_file() for name in _SAVED) and (folder / "state.json").is_file():
        return datasets.load_from_disk(str(folder))
    if folder is not None and (folder / "dataset_dict.json").is_file():
        return datasets.load_from_disk(str(folder))[split]
    stream = "[" not in split and (folder is not None or not datasets.config.HF_HUB_OFFLINE)
    return datasets.load_dataset(str(folder or data_set.name), data_set.config, split=split, streaming=stream)


def _reason(error: Exception) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__
