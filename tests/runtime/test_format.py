"""The format of entries: what is refused and with which words, and what older files are read as."""

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from basis_sharing.runtime import format_basis_sharing as module
from basis_sharing.runtime.config_basis_sharing import entries_of_config
from basis_sharing.runtime.entries_basis_sharing import Factors
from basis_sharing.runtime.format_basis_sharing import (
    FORMAT_VERSION,
    Entry,
    FormatError,
    Product,
    Shape,
    Stored,
    entries_from,
    entry_from,
    register_entry,
)
from basis_sharing.runtime.modeling_basis_sharing import BasisSharingConfig

Q, K = "layers.0.q", "layers.0.k"
GOOD: dict[str, Any] = {"kind": "factors", "members": [Q, K], "rank": 4}
FIXTURES = Path(__file__).parents[1] / "fixtures" / "0.1.0"


def refused(data: object, reader: Any = entry_from) -> str:
    with pytest.raises(FormatError) as caught:
        reader(data)
    sentence = str(caught.value)
    assert sentence.endswith(".")
    assert "\n" not in sentence
    return sentence


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"kind": "magic"}, "unknown kind of entry 'magic', known are"),
        ({"kind": None}, "unknown kind of entry None"),
        ({"kind": ["factors"]}, "unknown kind of entry ['factors']"),
        ({"colour": "red"}, "an entry of kind factors has the unknown field 'colour'."),
        ({"members": Q}, f"an entry of kind factors has the members {Q!r}; a list is needed."),
        ({"members": []}, "an entry of kind factors names no members."),
        ({"members": [Q, 3]}, "an entry of kind factors names no members."),
        ({"members": [Q, K, Q]}, f"{Q} is twice in one entry."),
        ({"rank": 0}, f"the entry of {Q} has rank 0; a positive integer is needed."),
        ({"rank": True}, f"the entry of {Q} has rank True; a positive integer is needed."),
        ({"rank": 2.5}, f"the entry of {Q} has rank 2.5; a positive integer is needed."),
        ({"rank": "4"}, f"the entry of {Q} has rank '4'; a positive integer is needed."),
        ({"form": "round"}, f"the entry of {Q} is stored in the form 'round', which this version does not know"),
        ({"pivots": "AAAA"}, f"the entry of {Q} has pivots, but its form is plain."),
        ({"form": "pivoted", "pivots": 7}, f"the entry of {Q} has pivots, but its form is pivoted."),
        ({"loss": "little"}, f"the entry of {Q} has the loss 'little'; a number is needed."),
        ({"tensors": 5}, f"the entry of {Q} has the tensors 5; mappings are needed."),
        (
            {"tensors": {"basis.weight": "int4"}},
            f"the entry of {Q} has the tensors {{'basis.weight': 'int4'}}; mappings",
        ),
        ({"tensors": {"basis.weight": {"dtype": "int9"}}}, "has basis.weight in int9, which kind factors of"),
        ({"tensors": {"basis.weight": {"dtype": "int4"}}}, "has basis.weight in few bits, but in no groups"),
        ({"tensors": {"weight": {"dtype": "uint4", "group": 0}}}, "has groups of 0 inputs"),
    ],
)
def test_what_is_wrong_with_an_entry_is_said_in_one_sentence(change: dict[str, Any], words: str) -> None:
    assert words in refused({**GOOD, **change})


@pytest.mark.parametrize("missing", ["kind", "members", "rank"])
def test_what_is_missing_is_named(missing: str) -> None:
    sentence = refused({name: value for name, value in GOOD.items() if name != missing})
    assert sentence.startswith("unknown kind of entry None" if missing == "kind" else "an entry of kind factors has no")
    assert missing == "kind" or sentence == f"an entry of kind factors has no {missing}."


@pytest.mark.parametrize("data", [None, 3, "factors", [GOOD]])
def test_an_entry_is_a_mapping(data: object) -> None:
    assert "a mapping with kind and members is needed" in refused(data)


@pytest.mark.parametrize("data", [None, [], {}, "entries", 4])
def test_entries_are_a_list_of_some(data: object) -> None:
    assert refused(data, entries_from) == "no entries are listed."


def test_a_member_belongs_to_one_entry() -> None:
    other = {**GOOD, "members": ["layers.1.q", K]}
    assert refused([GOOD, other], entries_from) == f"{K} belongs to two entries."
    assert [entry.owner for entry in entries_from([GOOD, {**GOOD, "members": ["layers.1.q"]}])] == [Q, "layers.1.q"]


def test_the_update_is_asked_for_where_a_file_is_newer() -> None:
    sentence = refused({"format_version": 3, "entries": [GOOD]}, entries_of_config)
    assert sentence == (
        "this checkpoint has format version 3, newer than the version 2 known here: update basis-sharing."
    )
    assert "update basis-sharing" in refused({**GOOD, "kind": "of tomorrow"})
    assert "update basis-sharing" in refused({**GOOD, "form": "of tomorrow"})


@pytest.mark.parametrize("version", [0, -1, "2", None, 1.5])
def test_a_version_is_a_positive_integer(version: object) -> None:
    assert "a positive integer is needed" in refused({"format_version": version, "entries": [GOOD]}, entries_of_config)


@pytest.mark.parametrize(
    "config",
    [
        {"format_version": 2},
        {"format_version": 2, "entries": []},
        {"format_version": 2, "entries": [{**GOOD, "rank": 0}]},
        {"format_version": 1, "groups": []},
        {"format_version": 1, "groups": {"members": [Q]}},
        {"format_version": 1, "groups": [{"members": [Q]}]},
        {"format_version": 1, "groups": ["group"]},
    ],
)
def test_mistakes_in_a_checkpoint_name_the_place(config: dict[str, Any]) -> None:
    assert refused(config, entries_of_config).startswith("quantization_config in config.json")


def test_groups_of_version_1_are_factors() -> None:
    code = base64.b64encode(bytes([0xA0])).decode()
    groups = [
        {"members": [Q, K], "rank": 4, "dtype": "float32"},
        {"members": ["layers.1.q"], "rank": 2, "form": "pivoted", "pivots": code},
    ]
    expected = (
        Factors(members=(Q, K), rank=4),
        Factors(members=("layers.1.q",), rank=2, form="pivoted", pivots=code),
    )
    assert entries_of_config({"format_version": 1, "groups": groups}) == expected
    saved = BasisSharingConfig(groups=groups, format_version=1).to_dict()
    assert saved["format_version"] == FORMAT_VERSION
    assert "groups" not in saved
    assert entries_of_config(saved) == expected


@pytest.mark.parametrize("name", ["auto", "basis-sharing"])
def test_the_checkpoints_of_0_1_0_are_read(name: str) -> None:
    config = json.loads((FIXTURES / name / "config.json").read_text())["quantization_config"]
    entries = entries_of_config(config)
    assert all(isinstance(entry, Factors) for entry in entries)
    assert [list(entry.members) for entry in entries] == [group["members"] for group in config["groups"]]


def test_what_is_at_its_default_is_not_written() -> None:
    assert Factors(members=(Q,), rank=3).to_dict() == {"kind": "factors", "members": [Q], "rank": 3}


@given(
    members=st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=5, unique=True),
    rank=st.integers(1, 10**6),
    loss=st.none() | st.floats(allow_nan=False, allow_infinity=False),
    pivots=st.none() | st.binary(max_size=20),
    pivoted=st.booleans(),
)
def test_an_entry_survives_json(
    members: list[str], rank: int, loss: float | None, pivots: bytes | None, pivoted: bool
) -> None:
    code = base64.b64encode(pivots).decode() if pivots is not None and pivoted else None
    form = "pivoted" if pivoted else "plain"
    entry = Factors(members=tuple(members), rank=rank, form=form, pivots=code, loss=loss)
    again = entry_from(json.loads(json.dumps(entry.to_dict())))
    assert again == entry
    assert isinstance(again, Factors)
    assert isinstance(again.members, tuple)
    assert entry_from(entry) is entry


def test_what_a_person_calls_it() -> None:
    entry = Factors(members=(Q, K), rank=3, form="pivoted")
    assert (entry.owner, entry.label, entry.title) == (Q, "3", "rank 3")
    assert replace(entry, form="plain").title == "rank 3 plain"
    assert entry.kept([(8, 4), (8, 4)]) == pytest.approx(3 / 8)
    assert entry.kept([(8, 2), (8, 2)]) == pytest.approx(3 / 4)


def test_what_is_on_disk() -> None:
    entry = Factors(members=(Q, K), rank=3)
    assert entry.on_disk() == {
        f"{Q}.basis.weight": (3, None),
        f"{Q}.weight": (None, 3),
        f"{K}.weight": (None, 3),
    }


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        ([(8, 4), (6, 4)], "mixes inputs of [6, 8] features"),
        ([(3, 4), (3, 4)], "has rank 4, but its matrices have at most 3"),
        ([(8, 1), (8, 2)], "has rank 4, but its matrices have at most 3"),
    ],
)
def test_an_entry_has_to_fit_its_members(shapes: list[tuple[int, int]], words: str) -> None:
    entry = Factors(members=(Q, K), rank=4)
    entry.fit([(8, 4), (8, 4)])
    assert words in refused(shapes, entry.fit)


def test_tensors_are_named_once_with_their_shapes() -> None:
    for form, read in (("plain", 8), ("pivoted", 5)):
        entry = Factors(members=(Q, K), rank=3, form=form)
        basis, first, second, *buffers = entry.stored([(8, 4), (8, 6)])
        assert (basis.shape, basis.member) == ((3, read), None)
        assert [(first.shape, first.member), (second.shape, second.member)] == [((4, 3), 0), ((6, 3), 1)]
        assert [(b.shape, b.dtype, b.buffer) for b in buffers] == ([((8,), "int32", True)] if form == "pivoted" else [])
        assert [(p.d_in, p.d_out, p.times) for p in entry.products([(8, 4), (8, 6)], 1)] == [
            (read, 3, 1),
            (3, 4, 1),
            (3, 6, 1),
        ]


def test_a_kind_belongs_to_one_class(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_ENTRIES", dict(module._ENTRIES))

    @register_entry
    @dataclass(frozen=True, kw_only=True)
    class Doubled(Entry):
        kind: ClassVar[str] = "doubled"

        times: int = 2

        def stored(self, shapes: Sequence[Shape]) -> tuple[Stored, ...]:
            return ()

        def products(self, shapes: Sequence[Shape], inputs: int) -> tuple[Product, ...]:
            return ()

    found = entry_from({"kind": "doubled", "members": [Q]})
    assert found == Doubled(members=(Q,))
    assert found.to_dict() == {"kind": "doubled", "members": [Q]}
    assert (found.label, found.title, found.kept([]), found.on_disk()) == ("doubled", "doubled", 1.0, {})
    assert register_entry(Doubled) is Doubled
    with pytest.raises(ValueError, match="two kinds of entries are called 'doubled'"):
        register_entry(type("Another", (Doubled,), {"kind": "doubled"}))
    assert "known are bits, doubled, embeddings, expert-factors, experts, factors" in refused(
        {"kind": "magic", "members": [Q]}
    )
