from rich.console import Console

from basis_sharing.models.decoder import describe
from basis_sharing.models.sizes import role_table, starting_point
from basis_sharing.reports.tables.inspection import advice, inspection_table
from basis_sharing.reports.terminal import printable
from pico import PICO
from samples import role_row

ROWS = [role_row("q", 10 * 2**20), role_row("down", 30 * 2**20), role_row("embeddings", 60 * 2**20, False)]


def test_what_a_role_is_worth():
    assert [r.saved_bytes(0.2) for r in ROWS] == [2 * 2**20, 6 * 2**20, 0]
    assert [r.saved_bytes(0.5) for r in ROWS] == [5 * 2**20, 15 * 2**20, 0]


def test_the_largest_roles_are_the_place_to_start():
    assert starting_point(ROWS) == (ROWS[1],)
    assert starting_point([*ROWS, role_row("up", 30 * 2**20)]) == (ROWS[1], role_row("up", 30 * 2**20))
    model = PICO["llama"]()
    assert [r.name for r in starting_point(role_table(model, describe(model)))] == ["gate", "up", "down"]


def test_the_advice_is_one_sentence():
    start = "Start with down: 30.0 % of the memory; removing half of that saves 15.0 MiB of the model's"
    assert advice(ROWS[:2]) == f"{start} 40.0 MiB."
    assert advice(ROWS) == f"{start} 100.0 MiB (the largest part, embeddings, 60.0 %, stays as it is)."
    assert advice([*ROWS[:2], role_row("up", 30 * 2**20)]).startswith("Start with down and up: 60.0 % of the memory")


def test_the_table_shows_both():
    console = Console(width=120, record=True)
    console.print(printable(inspection_table("a model", "llama", ROWS)))
    text = console.export_text()
    assert "20 % / 50 % saves" in text
    assert "yes: 6.0 MiB / 15.0 MiB" in text
    assert "no: why" in text
    assert "8.0 MiB / 20.0 MiB" in text  # all roles together
    assert "Start with down" in text
