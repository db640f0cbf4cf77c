"""One declaration per setting: keywords, help texts and places agree with the fields."""

from pathlib import Path
from typing import Any

import pytest

from basis_sharing.errors import RecipeError
from basis_sharing.recipe.calibration import Calibration, CalibrationKeywords
from basis_sharing.recipe.evaluation import Evaluation, EvaluationKeywords
from basis_sharing.recipe.model import ModelKeywords, ModelSettings
from basis_sharing.recipe.planning import Planning, PlanningKeywords
from basis_sharing.recipe.recipe import Recipe, RecipeKeywords
from basis_sharing.recipe.recovery import RecoveryKeywords, RecoverySettings
from basis_sharing.recipe.repair import Repair, RepairKeywords
from basis_sharing.recipe.settings import MOVED, Settings, flag_of, value_type
from basis_sharing.recipe.speed import Speed, SpeedKeywords
from basis_sharing.recipe.target import Target, TargetKeywords

PARTS: list[tuple[type[Settings], Any]] = [
    (Target, TargetKeywords),
    (Speed, SpeedKeywords),
    (Planning, PlanningKeywords),
    (ModelSettings, ModelKeywords),
    (Calibration, CalibrationKeywords),
    (Repair, RepairKeywords),
    (Evaluation, EvaluationKeywords),
]
WHOLES: list[tuple[type[Settings], Any]] = [(Recipe, RecipeKeywords), (RecoverySettings, RecoveryKeywords)]


@pytest.mark.parametrize(("settings", "keywords"), PARTS + WHOLES, ids=lambda kind: kind.__name__)
def test_keywords_are_the_fields(settings: type[Settings], keywords: Any) -> None:
    assert list(keywords.__annotations__) == list(settings.model_fields)
    assert keywords.__required_keys__ == frozenset()


def test_a_recipe_is_its_parts_and_nothing_else() -> None:
    names = [name for part, _ in PARTS for name in part.model_fields]
    assert len(names) == len(set(names)), "no setting belongs to two parts"
    assert set(names) == set(Recipe.model_fields)
    for part, _ in PARTS:
        for name, field in part.model_fields.items():
            assert Recipe.model_fields[name].default == field.default
            assert Recipe.model_fields[name].annotation == field.annotation


def test_the_checks_of_one_part_do_not_replace_those_of_another() -> None:
    """A recipe inherits from all parts: methods of one name would hide each other."""
    seen: dict[str, str] = {}
    for part, _ in PARTS:
        own = part.__pydantic_decorators__
        for name in (*own.field_validators, *own.model_validators):
            assert name not in seen, f"{part.__name__} and {seen.get(name)} both check in {name}"
            seen[name] = part.__name__
    recipe = Recipe.__pydantic_decorators__
    assert set(seen) <= {*recipe.field_validators, *recipe.model_validators}


@pytest.mark.parametrize("settings", [Recipe, RecoverySettings])
def test_help_texts_say_something_without_a_full_stop(settings: type[Settings]) -> None:
    options = settings.options()
    for name, option in options.items():
        assert len(option.help) > 10, name
        assert not option.help.rstrip().endswith("."), name
        assert option.help == option.help.strip(), name
        assert option.help[0].isupper() or settings is RecoverySettings, name
        assert "  " not in option.help, name
        if option.default is not None:
            assert not option.default.endswith("."), name


def test_every_setting_of_a_recipe_can_be_given_on_the_command_line() -> None:
    assert list(Recipe.options()) == list(Recipe.model_fields)
    assert set(RecoverySettings.model_fields) - set(RecoverySettings.options()) == {
        "train",
        "loss",
        "lora_rank",
        "lora_alpha",
    }
    flags = [flag_of(name, option) for name, option in Recipe.options().items()]
    assert len(set(flags)) == len(flags)
    assert all(flag.startswith("--") for flag in flags)
    for name, option in Recipe.options().items():
        field = Recipe.model_fields[name]
        is_switch = isinstance(field.default, bool)
        assert is_switch == (option.metavar is None), f"{name} needs a placeholder unless it is a switch"
        assert is_switch == (option.flag is not None), f"{name} is on by default: its flag turns it off"
        assert option.repeated <= (value_type(field) is tuple), name


def test_defaults_that_do_not_speak_for_themselves_are_in_words() -> None:
    for name, option in Recipe.options().items():
        default = Recipe.model_fields[name].default
        if default in (None, ()) and option.panel != "Target":
            assert option.default, name


@pytest.mark.parametrize("name", MOVED)
def test_a_setting_in_the_wrong_place_is_answered_with_the_right_one(name: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(f"ratio: 0.2\n{name}: 1\n")
    with pytest.raises(RecipeError) as in_a_file:
        Recipe.settings_in(path)
    assert str(in_a_file.value) == f"the recipe {path} has the unknown setting {name!r}: {MOVED[name]}."
    with pytest.raises(RecipeError) as in_python:
        Recipe.create(ratio=0.2, **{name: 1})
    assert str(in_python.value) == f"unknown setting {name!r}: {MOVED[name]}."
    assert name not in Recipe.model_fields


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("no_gradients", "write `gradients: false`"),
        ("no_sharing", "write `across_depth: false`"),
        ("no_joint_roles", "write `across_roles: false`"),
        ("output", "an option of the command"),
        ("device", "an option of the command"),
        ("max_memory", "an option of the command"),
        ("groups", "write `plan: FILE`"),
        ("text", "`calibration`"),
    ],
)
def test_what_people_look_for(name: str, words: str) -> None:
    assert words in Recipe.nearest(name)


def test_what_it_names_instead_exists() -> None:
    for name in ("gradients", "across_depth", "across_roles", "plan", "refine", "calibration", "evaluate"):
        assert name in Recipe.model_fields
        assert any(f"`{name}" in answer for answer in MOVED.values())


def test_flags_turn_off_what_is_on() -> None:
    flags = {name: option.flag for name, option in Recipe.options().items() if option.flag is not None}
    assert flags == {
        "gradients": "--no-gradients",
        "across_depth": "--no-sharing",
        "across_roles": "--no-joint-roles",
        "zero_points": "--no-zero-points",
    }
    assert all(Recipe.model_fields[name].default is True for name in flags)
    assert {flag.removeprefix("--").replace("-", "_") for flag in flags.values()} <= set(MOVED)
