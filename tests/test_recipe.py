"""Recipes: files, flags and their mistakes."""

from fractions import Fraction
from pathlib import Path

import pytest

from basis_sharing.errors import RecipeError
from basis_sharing.recipe import Recipe


def test_a_file_is_a_view_of_the_recipe(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("ratio: 0.3\nmethod: svd-llm\nshare: q, gate ,up\n")
    recipe = Recipe.create(**Recipe.settings_in(path))
    assert (recipe.ratio, recipe.method, recipe.share) == (0.3, "svd-llm", ("q", "gate", "up"))
    path.write_text(recipe.model_dump_json())
    assert Recipe.create(**Recipe.settings_in(path)) == recipe


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("ratio: [", "is not valid YAML"),
        ("just words", "is not a mapping"),
        ("ratoi: 0.2", "unknown setting 'ratoi': did you mean 'ratio'?"),
    ],
)
def test_bad_files(tmp_path: Path, content: str, sentence: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(content)
    with pytest.raises(RecipeError) as caught:
        Recipe.settings_in(path)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(RecipeError, match="cannot be read"):
        Recipe.settings_in(tmp_path / "nowhere.yaml")


def test_unknown_settings_suggest_the_nearest() -> None:
    with pytest.raises(RecipeError, match=r"did you mean 'windows'\?"):
        Recipe.create(ratio=0.2, window=3)


def test_the_ratio_is_the_decimal_the_user_wrote() -> None:
    assert Recipe.create(ratio="0.3").exact_ratio == Fraction(3, 10)


@pytest.mark.parametrize(
    ("settings", "refits"),
    [
        ({"ratio": 0.39}, False),
        ({"ratio": 0.4}, True),
        ({"ratio": 0.5, "refit": "never"}, False),
        ({"ratio": 0.1, "refit": "always"}, True),
        ({"ratio": 0.5, "method": "svd-llm"}, False),
    ],
)
def test_when_coefficients_are_refitted(settings: dict[str, object], refits: bool) -> None:
    assert Recipe.create(**settings).refits == refits
