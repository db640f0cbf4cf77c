"""Files of results: what is written is read back, and anything else is refused with one sentence."""

import json
from pathlib import Path
from typing import Literal

import pytest

from basis_sharing.errors import ResultError
from basis_sharing.results.base import Result, kind_of


class Weather(Result):
    kind: Literal["weather"] = "weather"
    degrees: float


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    Weather(degrees=21.5).write(path)
    assert Weather.read(path) == Weather(degrees=21.5)
    assert kind_of(path) == "weather"


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("{", "not valid JSON"),
        ("[]", "holds no results"),
        ("{}", "holds no results"),
        ('{"schema_version": 1}', "results of a compression, not of a weather"),
        ('{"schema_version": 2, "kind": "weather", "degrees": 1}', "schema version 2"),
        ('{"schema_version": 1, "kind": "weather"}', "damaged (degrees"),
        ('{"schema_version": 1, "kind": "weather", "degrees": 1, "wind": 2}', "damaged (wind"),
    ],
)
def test_anything_else_is_refused(tmp_path: Path, content: str, sentence: str) -> None:
    path = tmp_path / "result.json"
    path.write_text(content)
    with pytest.raises(ResultError, match=r".") as caught:
        Weather.read(path)
    assert sentence in str(caught.value)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ResultError, match="cannot be read"):
        Weather.read(tmp_path / "none.json")


def test_files_of_the_first_version_are_of_compressions(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    path.write_text(json.dumps({"schema_version": 1, "model": "m"}))
    assert kind_of(path) == "compression"
