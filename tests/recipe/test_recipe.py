"""Recipes: files, flags and their mistakes."""

from fractions import Fraction
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from basis_sharing.errors import RecipeError
from basis_sharing.recipe.presets import PRESETS
from basis_sharing.recipe.recipe import EXPERT_TREATMENTS, Recipe
from basis_sharing.recipe.target import LIMITS
from basis_sharing.weightings.base import WEIGHTINGS


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
        ({"ratio": 0.39, "method": "basis-sharing"}, "never"),
        ({"ratio": 0.4, "method": "basis-sharing"}, "always"),
        ({"ratio": 0.5, "method": "basis-sharing", "refit": "never"}, "never"),
        ({"ratio": 0.1, "method": "basis-sharing", "refit": "always"}, "always"),
        ({"ratio": 0.5, "method": "svd-llm"}, "never"),
        ({"ratio": 0.5, "method": "svd-llm", "refit": "anchored"}, "anchored"),
        ({"ratio": 0.1}, "anchored"),
        ({"max_parameters": 1000}, "anchored"),
        ({"ratio": 0.1, "refit": "never"}, "never"),
        ({"ratio": 0.5, "refine": 5}, "never"),
        ({"ratio": 0.5, "refine": 5, "refit": "anchored"}, "anchored"),
    ],
)
def test_when_coefficients_are_refitted(settings: dict[str, object], refits: str) -> None:
    assert Recipe.create(**settings).chosen_refit == refits


TARGETS = {
    "ratio": 0.2,
    "max_parameters": 90_000_000,
    "max_bytes": 1_000_000,
    "max_flops": 5_000_000,
    "bits": 4.25,
    "max_perplexity_increase": 0.05,
    "plan": "plan.json",
}


@pytest.mark.parametrize("name", TARGETS)
def test_one_target_is_enough(name: str) -> None:
    recipe = Recipe.create(**{name: TARGETS[name]})
    assert {other for other in TARGETS if getattr(recipe, other) is not None} == {name}


@pytest.mark.parametrize(
    ("one", "other"), [pair for pair in combinations(TARGETS, 2) if not set(pair) <= {*LIMITS, "bits"}]
)
def test_two_targets_are_refused(one: str, other: str) -> None:
    with pytest.raises(RecipeError, match=f"{one} and {other} are both given: choose one target"):
        Recipe.create(**{name: TARGETS[name] for name in (one, other)})


@pytest.mark.parametrize("names", [pair for n in (2, 3) for pair in combinations(LIMITS, n)])
def test_limits_may_be_combined(names: tuple[str, ...]) -> None:
    recipe = Recipe.create(**{name: TARGETS[name] for name in names})
    assert recipe.limits == {name: TARGETS[name] for name in names}
    with pytest.raises(RecipeError, match="choose one target; only max_parameters, max_bytes, max_flops, bits can"):
        Recipe.create(ratio=0.2, **{name: TARGETS[name] for name in names})


def test_no_target_is_refused_with_all_there_are() -> None:
    with pytest.raises(RecipeError, match="the target is missing") as caught:
        Recipe.create(method="svd")
    for name in TARGETS:
        assert f"--{name.replace('_', '-')}" in str(caught.value)


@pytest.mark.parametrize("setting", ["max_parameters", "max_bytes", "max_flops"])
@pytest.mark.parametrize(
    ("written", "amount"),
    [
        (90_000_000, 90_000_000),
        ("90000000", 90_000_000),
        ("90M", 90_000_000),
        ("1.5G", 1_500_000_000),
        (" 2 k ", 2_000),
        ("2K", 2_000),
        ("512MiB", 512 * 2**20),
        ("512 MiB", 512 * 2**20),
        ("0.5GiB", 2**29),
        ("700MB", 700_000_000),
        ("4Gi", 4 * 2**30),
        ("1T", 10**12),
        ("100B", 100),
        ("0.57G", 570_000_000),
        (".5k", 500),
    ],
)
def test_amounts(setting: str, written: object, amount: int) -> None:
    assert getattr(Recipe.create(**{setting: written}), setting) == amount


@pytest.mark.parametrize(
    "written", ["", "many", "-5M", "5 X", "M", "1.2.3M", ".", "5 MiBs", "5e6M", "0", 0, -3, "0.0001"]
)
def test_what_is_no_amount(written: object) -> None:
    with pytest.raises(RecipeError) as caught:
        Recipe.create(max_bytes=written)
    assert "\n" not in str(caught.value)
    assert repr(written) in str(caught.value) or "with value 0" in str(caught.value)


@pytest.mark.parametrize(
    ("written", "fraction"), [("5%", 0.05), (" 12.5 % ", 0.125), (0.05, 0.05), ("0.05", 0.05), ("200%", 2.0)]
)
def test_percentages(written: object, fraction: float) -> None:
    assert Recipe.create(max_perplexity_increase=written).max_perplexity_increase == pytest.approx(fraction)


@pytest.mark.parametrize("written", ["%", "a lot%", "0%", 0, -0.1, "-5%", "lots"])
def test_what_is_no_percentage(written: object) -> None:
    with pytest.raises(RecipeError) as caught:
        Recipe.create(max_perplexity_increase=written)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("other", [name for name in TARGETS if name != "plan"])
@pytest.mark.parametrize("limit", [{"min_speedup": "1.3x"}, {"max_latency": "25ms", "phase": "decode"}])
def test_limits_on_time_go_with_any_other_target(other: str, limit: dict[str, str]) -> None:
    assert Recipe.create(**{other: TARGETS[other]}, **limit).limits_time
    assert Recipe.create(**limit).limits_time
    with pytest.raises(RecipeError, match="and plan are both given"):
        Recipe.create(plan="plan.json", **limit)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"min_speedup": "0.5"}, "min_speedup 0.5 is out of range: .* from 1 .* to 10"),
        ({"min_speedup": 20}, "min_speedup 20 is out of range"),
        ({"min_speedup": "nan"}, "min_speedup nan is out of range"),
        ({"min_speedup": "fast"}, "'fast' is not a number: give the speed as a multiple"),
        ({"max_latency": "25", "phase": "decode"}, "'25' is no time: write it with its unit"),
        ({"max_latency": "soon", "phase": "decode"}, "'soon' is no time"),
        ({"max_latency": 0, "phase": "decode"}, "max_latency"),
        ({"max_latency": "25ms"}, "--max-latency needs its phase: add --phase prefill"),
        ({"min_speedup": 1.2, "phase": "prefill", "batch": 8}, "--batch belongs to decode"),
        ({"min_speedup": 1.2, "phase": "training"}, "phase"),
        ({"ratio": 0.2, "batch": 0}, "batch"),
        ({"ratio": 0.2, "tokens": 0}, "tokens"),
        ({"ratio": 0.2, "runs_on": "tpu"}, "runs_on"),
        ({"ratio": 0.2, "rank_multiple": "many"}, "rank_multiple 'many' is no multiple"),
        ({"ratio": 0.2, "rank_multiple": 0}, "rank_multiple 0 is no multiple"),
    ],
)
def test_what_is_no_limit_on_time(settings: dict[str, object], sentence: str) -> None:
    with pytest.raises(RecipeError, match=sentence) as caught:
        Recipe.create(**settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("written", "seconds"), [("25ms", 0.025), ("0.2 s", 0.2), ("500us", 0.0005), (0.1, 0.1)])
def test_times(written: object, seconds: float) -> None:
    assert Recipe.create(max_latency=written, phase="both").max_latency == pytest.approx(seconds)


@pytest.mark.parametrize(
    "method", [name for name, preset in PRESETS.items() if not preset.planned and not preset.rounding]
)
@pytest.mark.parametrize(
    ("settings", "flag"),
    [
        ({"max_parameters": 1000}, "--max-parameters"),
        ({"max_bytes": 1000}, "--max-bytes"),
        ({"max_flops": 1000}, "--max-flops"),
        ({"max_perplexity_increase": 0.1}, "--max-perplexity-increase"),
        ({"ratio": 0.2, "gradients": False}, "--no-gradients"),
        ({"ratio": 0.2, "across_roles": False}, "--no-joint-roles"),
        ({"ratio": 0.2, "across_depth": False}, "--no-sharing"),
        ({"ratio": 0.2, "rank_multiple": 8}, "--rank-multiple"),
        ({"ratio": 0.2, "treatments": ("factors", "more")}, "--treatments"),
        ({"bits": 4}, "--bits"),
        ({"ratio": 0.2, "widths": "4"}, "--widths"),
        ({"ratio": 0.2, "scale_group": 32}, "--scale-group"),
        ({"ratio": 0.2, "zero_points": False}, "--no-zero-points"),
    ],
)
def test_settings_of_the_planner_mean_nothing_to_fixed_methods(
    method: str, settings: dict[str, object], flag: str
) -> None:
    with pytest.raises(RecipeError, match=f"{flag} has no meaning for method {method}: .* use method auto"):
        Recipe.create(method=method, **settings)


@pytest.mark.parametrize(
    ("settings", "flag"),
    [
        ({"widths": "4"}, "--widths"),
        ({"scale_group": 32}, "--scale-group"),
        ({"zero_points": False}, "--no-zero-points"),
    ],
)
def test_settings_of_rounding_mean_nothing_without_bits(settings: dict[str, Any], flag: str) -> None:
    for target in ({"ratio": 0.2}, {"bits": 4, "treatments": "factors"}):
        with pytest.raises(RecipeError, match=f"{flag} has no meaning where nothing is rounded: add --bits"):
            Recipe.create(**target, **settings)
    assert Recipe.create(max_bytes="1MB", **settings).offered_treatments == ("factors", "bits", *EXPERT_TREATMENTS)
    assert Recipe.create(ratio=0.2, treatments="factors,bits", **settings)


@pytest.mark.parametrize("settings", [{"group_size": 2}, {"group_size": 1}, {"share": "q,k"}, {"share": ()}])
def test_settings_of_fixed_methods_mean_nothing_to_the_planner(settings: dict[str, object]) -> None:
    flag = "--" + next(iter(settings)).replace("_", "-")
    for target in ({"ratio": 0.2}, {"max_parameters": 1000}):
        with pytest.raises(RecipeError, match=f"{flag} has no meaning for method auto: .* use method basis-sharing"):
            Recipe.create(**target, **settings)
    assert Recipe.create(ratio=0.2, method="basis-sharing", **settings)


def test_defaults_given_by_name_are_as_good_as_left_out() -> None:
    named = {"gradients": True, "across_roles": True, "across_depth": True, "rank_multiple": "auto", "max_bytes": None}
    assert Recipe.create(ratio=0.2, method="svd", **named) == Recipe.create(ratio=0.2, method="svd")


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({}, "loss"),
        ({"gradients": False}, "sensitivity"),
        ({"method": "svd"}, "none"),
        ({"method": "fwsvd"}, "fisher"),
        ({"method": "asvd"}, "mean-absolute"),
        ({"method": "svd-llm"}, "second-moment"),
        ({"method": "basis-sharing"}, "second-moment"),
    ],
)
def test_the_weighting_is_that_of_the_method(settings: dict[str, object], name: str) -> None:
    recipe = Recipe.create(ratio=0.2, **settings)
    assert recipe.weighting == name
    assert name in WEIGHTINGS
    assert recipe.reads_text == (name != "none")


@pytest.mark.parametrize(
    ("name", "written", "parts"),
    [
        ("roles", "gate, up ,down", ("gate", "up", "down")),
        ("share", "q,,k", ("q", "k")),
        ("treatments", "factors", ("factors",)),
        ("roles", ("gate",), ("gate",)),
    ],
)
def test_names_may_be_written_with_commas(name: str, written: object, parts: tuple[str, ...]) -> None:
    """Whichever part of the recipe they belong to: one part's way of reading them must not hide another's."""
    method = {"method": "basis-sharing"} if name == "share" else {}
    assert getattr(Recipe.create(ratio=0.2, **method, **{name: written}), name) == parts


def test_the_stored_form() -> None:
    assert Recipe.create(ratio=0.2).stored_form == "pivoted"
    assert Recipe.create(ratio=0.2, form="plain").stored_form == "plain"
    assert Recipe.create(ratio=0.2, method="svd").stored_form == "plain"
    assert Recipe.create(ratio=0.2, method="svd", form="pivoted").stored_form == "pivoted"


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"bits": 0}, "bits 0 is out of range: give the bits per weight, from 1 to below 16"),
        ({"bits": "17"}, "bits 17 is out of range"),
        ({"bits": "four"}, "bits 'four' is not a number"),
        ({"bits": 4, "widths": "9"}, "widths '9' are no numbers of bits: give numbers from 2 to 8"),
        ({"bits": 4, "widths": "4,few"}, "widths '4,few' are no numbers of bits"),
        ({"bits": 4, "scale_group": 8}, "scale_group"),
        ({"bits": 4.5, "method": "gptq"}, "method gptq needs a whole number of bits, from 2 to 8"),
        ({"ratio": 0.2, "method": "rtn"}, "method rtn needs a whole number of bits"),
        ({"bits": 4, "method": "rtn", "widths": "4"}, "--widths has no meaning for method rtn"),
        ({"bits": 4, "method": "gptq", "rank_multiple": 8}, "--rank-multiple has no meaning for method gptq"),
    ],
)
def test_what_are_no_bits(settings: dict[str, object], sentence: str) -> None:
    with pytest.raises(RecipeError, match=sentence) as caught:
        Recipe.create(**settings)
    assert "\n" not in str(caught.value)


def test_rounding_is_offered_where_bytes_are_limited() -> None:
    assert Recipe.create(ratio=0.2).offered_treatments == ("factors", *EXPERT_TREATMENTS)
    assert Recipe.create(ratio=0.2, gradients=False).offered_treatments == ("factors",)
    for target in ({"bits": 4.25}, {"max_bytes": 1000}):
        assert Recipe.create(**target).offered_treatments == ("factors", "bits", *EXPERT_TREATMENTS)
        assert Recipe.create(**target, treatments="factors").offered_treatments == ("factors",)
    assert Recipe.create(bits=3, widths="2,4,4").offered_widths == (4, 2)
