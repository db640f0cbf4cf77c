"""What the command line can do, Python can do under the same names, and the other way round."""

import inspect
import typing
from typing import Any

import pytest
import typer

import basis_sharing
from basis_sharing.cli.main import app
from basis_sharing.results.comparison import Limits

VERBS = ("compare", "bench", "report", "inspect", "export")
WITH_SETTINGS = ("compress", "plan", "study", "recover", "rollout", "evaluate")
ONLY_PYTHON = {"tokenizer", "progress"}
PRINTING = {"as_json"}
RESULT_FILE = {"output", "overwrite"}
"""Where the command line writes the object that Python returns."""


def options(verb: str) -> set[str]:
    """Return the names of a verb's arguments and options, as Python calls them."""
    group: Any = typer.main.get_command(app)
    names = {p.name for p in group.commands[verb].params if not getattr(p, "hidden", False)}
    names -= PRINTING | (RESULT_FILE if verb in ("compare", "bench") else set())
    positive = {name.removeprefix("no_") for name in names}  # --no-memory: memory=False
    limits = set(Limits.model_fields) & positive
    return (positive - limits) | ({"limits"} if limits else set())


@pytest.mark.parametrize("verb", VERBS)
def test_the_same_names(verb: str) -> None:
    function = getattr(basis_sharing, verb)
    assert set(inspect.signature(function).parameters) - ONLY_PYTHON == options(verb)


@pytest.mark.parametrize("verb", WITH_SETTINGS)
def test_every_option_is_a_keyword(verb: str) -> None:
    names: set[str] = set()
    for name, parameter in inspect.signature(getattr(basis_sharing, verb)).parameters.items():
        settings = typing.get_args(parameter.annotation) if parameter.kind is parameter.VAR_KEYWORD else ()
        names |= set(settings[0].__annotations__) if settings else {name}
    if verb == "rollout":
        names |= set(Limits.model_fields)
    group: Any = typer.main.get_command(app)
    shown = {p.name.removeprefix("no_") for p in group.commands[verb].params if not getattr(p, "hidden", False)}
    estimated = {"dry_run"} if verb == "compress" else set()  # basis_sharing.estimate
    assert shown - names <= PRINTING | estimated | (RESULT_FILE if verb in ("plan", "study") else set())


@pytest.mark.parametrize("verb", VERBS)
def test_the_same_defaults(verb: str) -> None:
    group: Any = typer.main.get_command(app)
    shown = {p.name: p.default for p in group.commands[verb].params if not p.required}
    parameters = inspect.signature(getattr(basis_sharing, verb)).parameters
    for name in ("dtype", "device", "length", "evaluation_windows", "new_tokens", "repeats", "seed", "to", "overwrite"):
        if name in shown and name in parameters:
            assert shown[name] == parameters[name].default, name


@pytest.mark.parametrize("name", ["evaluate", "compare", "bench", "load"])
def test_dtype_and_device_are_text(name: str) -> None:
    parameters = inspect.signature(getattr(basis_sharing, name)).parameters
    assert parameters["dtype"].default == "auto"
    assert parameters["device"].default is None


def test_what_is_public() -> None:
    assert set(dir(basis_sharing)) == {*basis_sharing.__all__, "__version__"}
    verbs = "compress plan study recover rollout evaluate compare bench report inspect export estimate load"
    assert {name for name in basis_sharing.__all__ if name.islower()} == set(verbs.split())
    errors = {name for name in vars(__import__("basis_sharing.errors").errors) if name.endswith("Error")}
    assert {name for name in basis_sharing.__all__ if name.endswith("Error")} == errors


@pytest.mark.parametrize(
    ("old", "new"),
    [("plan_model", "plan"), ("write_report", "report"), ("recheck", "compare"), ("densify", "export")],
)
def test_old_names_say_what_to_call(old: str, new: str) -> None:
    with pytest.raises(AttributeError, match=f"^basis_sharing.{old} was renamed: call basis_sharing.{new}"):
        getattr(basis_sharing, old)


def test_unknown_names() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'squeeze'"):
        basis_sharing.squeeze
