"""What a result says in words; above all, a command that gives the same settings again."""

import shlex
from pathlib import Path
from typing import Any

import pytest

from basis_sharing.cli.main import main
from basis_sharing.plans.plan import Prediction
from basis_sharing.recipe.recipe import Recipe
from basis_sharing.results.compression import CompressionResult
from basis_sharing.results.measures import Sizes
from basis_sharing.results.words import (
    amount_of_bytes,
    asked_and_reached,
    change,
    command_line,
    condensed,
    expectation,
    how_to_repeat,
    without_folders,
)

SIZES = Sizes(
    parameters=100, projection_parameters=80, projection_multiplications=80, bytes_in_memory=400, bytes_on_disk=None
)


def result(model: str = "llama", fingerprint: str | None = "abc", **settings: Any) -> CompressionResult:
    recipe = Recipe.create(**settings)
    return CompressionResult(
        model=model,
        model_fingerprint=fingerprint,
        family="llama",
        recipe=recipe,
        shared_roles=(),
        calibration=None,
        ratio_reached=0.2,
        before=SIZES,
        after=SIZES,
        method=recipe.method,
        prediction=None,
        entries=(),
        perplexity_before=(),
        perplexity_after=(),
        notes=(),
        versions={"basis-sharing": "0.1.0"},
    )


@pytest.mark.parametrize(
    "settings",
    [
        {"ratio": 0.2},
        {"max_bytes": "512MiB", "gradients": False, "across_depth": False, "across_roles": False, "rank_multiple": 8},
        {"max_perplexity_increase": "5%", "evaluate": ("a text.txt", "python-docs:heldout"), "evaluation_windows": 3},
        {"ratio": 0.3, "method": "basis-sharing", "share": "q,gate", "group_size": 3, "refit": "never", "seed": 1},
        {"ratio": 0.3, "method": "svd", "form": "pivoted", "dtype": "float32", "calibration": "c4:file.jsonl.gz"},
        {"plan": "plan.json", "windows": 9, "length": 64},
        {"ratio": 0.3, "roles": "gate,up"},
    ],
)
def test_the_command_gives_the_same_settings_again(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    given = result("my model", **settings)
    found: dict[str, Any] = {}

    def compress(
        model: str,
        recipe: Recipe,
        *,
        output: Path,
        work: Path | None,
        overwrite: bool,
        device: str | None,
        max_memory: str | None,
        progress: object,
    ) -> None:
        found.update(model=model, output=output, recipe=recipe)
        raise KeyboardInterrupt

    monkeypatch.setattr("basis_sharing.verbs.compress.compress", compress)
    program, *words = shlex.split(command_line(given, "the output"))
    assert program == "basis-sharing"
    with pytest.raises(SystemExit):
        main(words)
    assert found == {"model": "my model", "output": Path("the output"), "recipe": given.recipe}


def test_a_plan_brings_its_method_along() -> None:
    assert command_line(result(plan="plan.json", method="svd")) == (
        "basis-sharing compress llama -o DIR --plan plan.json"
    )


def test_a_model_in_memory_is_repeated_in_python() -> None:
    given = result("LlamaForCausalLM", None, ratio=0.25, method="svd", evaluate=("/data/text.txt",))
    assert how_to_repeat(given) == (
        "basis_sharing.compress(model, tokenizer=tokenizer, output='DIR', ratio=0.25, method='svd', "
        "evaluate=('/data/text.txt',))"
    )
    assert "evaluate=('text.txt',)" in how_to_repeat(given, published=True)


def test_a_published_command_names_no_folders() -> None:
    given = result("/home/me/my models/llama", ratio=0.2, calibration="wikitext2:/data/wiki.train.raw")
    assert command_line(given, published=True) == (
        "basis-sharing compress llama -o DIR --ratio 0.2 --calibration wikitext2:wiki.train.raw"
    )
    assert "/home/me/my models/llama" in command_line(given)


@pytest.mark.parametrize(
    ("text", "published"),
    [
        ("/data/x/llama", "llama"),
        ("/data/x/llama/", "llama/"),
        ("~/llama", "llama"),
        ("c4:/data/x.jsonl", "c4:x.jsonl"),
        ("python-docs:heldout", "python-docs:heldout"),
        ("org/name", "org/name"),
        ("either / or, nats/token", "either / or, nats/token"),
        ("see https://example.org/a/b", "see https://example.org/a/b"),
        (
            "the plan was made for /data/a b/llama, with other weights",
            "the plan was made for llama, with other weights",
        ),
    ],
)
def test_folders_are_cut_off(text: str, published: str) -> None:
    assert without_folders(text) == published


def test_amounts() -> None:
    assert amount_of_bytes(1023) == "1023 bytes"
    assert amount_of_bytes(1536) == "1.5 KiB"
    assert amount_of_bytes(5 * 2**30) == "5.0 GiB"
    assert change(100, 82) == "-18.0 %"
    assert change(100, 105) == "+5.0 %"


def test_what_was_expected_says_how_it_was_scaled() -> None:
    assert expectation(Prediction(loss=0.1)) == (
        "The plan expected +0.1000 nats per token, 1.105 x the perplexity, from its calibration text alone, not scaled "
        "by a measurement."
    )
    assert expectation(Prediction(loss=0.1, scale=2, text="t")).endswith("scaled by 2.00, one plan measured on t.")
    assert expectation(Prediction(loss=1e4)).startswith("The plan expected +10000.0000 nats per token")


def test_what_was_asked_and_reached() -> None:
    assert asked_and_reached(result(max_bytes="512MiB")).startswith(
        "Method auto; max bytes asked 536870912, reached 0.2000"
    )


def test_bits_that_were_asked_and_reached() -> None:
    rounded = SIZES.model_copy(update={"projection_bytes": 40})  # for 80 weights
    found = result(bits=4).model_copy(update={"before": SIZES, "after": rounded})
    assert asked_and_reached(found) == (
        "Method auto; bits asked 4.0, reached 4.0000 per weight of the compressible projections, scales and indices "
        "counted."
    )


def test_many_notes_are_counted() -> None:
    notes = [f"{number}" for number in range(8)]
    assert condensed(notes[:6]) == notes[:6]
    assert condensed(notes) == [*notes[:6], "... and 2 more, see basis_sharing.json or --json"]
