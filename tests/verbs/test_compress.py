"""The Python interface: every method, the settings, and models in memory."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, pipeline

import basis_sharing
from basis_sharing.calibration import text as prepared
from basis_sharing.calibration.windows import TokenWindows, calibration_windows
from basis_sharing.errors import ModelError, RecipeError
from basis_sharing.recipe.presets import PRESETS
from basis_sharing.run.progress import Progress
from pico import PICO, pico_tokenizer, save_pico

TEXT = "Sharing a basis between layers saves parameters where their weight matrices have much in common. " * 40
IDS = torch.arange(24)[None]


@pytest.fixture
def text(tmp_path: Path) -> str:
    (tmp_path / "text.txt").write_text(TEXT)
    return str(tmp_path / "text.txt")


def run(name: str, text: str, ratio: Any = 0.3, **settings: Any) -> tuple[Any, Any]:
    options = {"method": "basis-sharing", "calibration": text, "windows": 8, "length": 64, **settings}
    return basis_sharing.compress(PICO[name](), ratio, tokenizer=pico_tokenizer(), **options)


@pytest.mark.parametrize("method", [name for name, preset in PRESETS.items() if preset.rounding is None])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_every_method_works(method: str, name: str, text: str, tmp_path: Path) -> None:
    model, result = run(name, text, method=method)
    assert result.recipe.method == method
    assert 0.3 <= result.ratio_reached < (0.302 if method == "auto" else 0.36)
    assert (result.calibration is None) == (method == "svd")
    assert any(len(entry.members) > 1 for entry in result.entries) == (method in ("auto", "basis-sharing"))
    model.save_pretrained(tmp_path / "out")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    with torch.no_grad():
        assert torch.equal(again(IDS).logits, model(IDS).logits)


def test_perplexity_before_and_after_and_data_helps(text: str) -> None:
    found = {}
    for method in ("svd", "svd-llm"):
        _, result = run("llama", text, method=method, evaluate=(text,), ratio=0.5)
        (before,), (after,) = result.perplexity_before, result.perplexity_after
        assert before.fingerprint == after.fingerprint
        found[method] = abs(after.nats_per_token - before.nats_per_token)
    assert found["svd-llm"] < found["svd"]


def test_basis_sharing_with_groups_of_one_is_svd_llm(text: str) -> None:
    one, _ = run("llama", text, method="basis-sharing", group_size=1)
    other, _ = run("llama", text, method="svd-llm")
    with torch.no_grad():
        assert torch.equal(one(IDS).logits, other(IDS).logits)


def test_refit_is_automatic_from_40_percent_and_changes_coefficients_only(text: str) -> None:
    stages: list[str] = []

    def note(event: Progress) -> None:
        stages.append(event.stage)

    run("llama", text, ratio=0.39, progress=note)
    assert stages[0].startswith("planned, ")  # the plan is known before any work starts
    assert "refitting" not in stages
    refitted, _ = run("llama", text, ratio="0.4", progress=note)
    assert "refitting" in stages
    plain, _ = run("llama", text, ratio=0.4, refit="never")
    differing = {
        k.split(".")[-2] for k, v in plain.state_dict().items() if not torch.equal(v, refitted.state_dict()[k])
    }
    assert differing == {"coeff"}


def test_the_share_table_can_be_chosen(text: str) -> None:
    def shared(**settings: Any) -> set[str]:
        _, result = run("llama", text, **settings)
        return {e.members[0].split(".")[-1].removesuffix("_proj") for e in result.entries if len(e.members) > 1}

    assert shared() == {"q", "k", "v", "gate", "up"}
    assert shared(share="mistral") == {"q", "gate", "up"}
    assert shared(share=("q", "down")) == {"q", "down"}
    with pytest.raises(RecipeError, match="unknown role"):
        shared(share="attention")


def test_same_seed_same_bytes(text: str, tmp_path: Path) -> None:
    dense = save_pico("llama", tmp_path / "dense")
    for name in ("a", "b"):
        basis_sharing.compress(dense, 0.2, calibration=text, windows=8, length=64, output=tmp_path / name)
    for file in sorted((tmp_path / "a").iterdir()):
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes(), file.name


def test_windows_file_gives_token_identical_runs(text: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "w.npz", input_ids=np.random.default_rng(0).integers(0, 256, (8, 64)))
    results = [run("llama", str(tmp_path / "w.npz"), seed=seed)[1] for seed in (1, 2)]
    assert results[0].calibration.fingerprint == results[1].calibration.fingerprint
    assert results[0].entries == results[1].entries


def test_a_singular_moment_is_mentioned(tmp_path: Path) -> None:
    np.savez(tmp_path / "w.npz", input_ids=np.arange(16)[None])
    _, result = run("llama", str(tmp_path / "w.npz"), length=16)
    assert any("is not positive definite; a ridge of" in note for note in result.notes)
    assert any(entry.ridge > 0 for entry in result.entries)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_the_dtype_of_the_checkpoint_is_kept(dtype: torch.dtype, text: str, tmp_path: Path) -> None:
    dense = save_pico("llama", tmp_path / "dense", dtype=dtype, max_shard_size=60_000)
    model, _ = basis_sharing.compress(dense, 0.2, calibration=text, windows=8, length=64, output=tmp_path / "out")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert {p.dtype for p in loaded.parameters()} == {p.dtype for p in model.parameters()} == {dtype}


def test_a_model_in_memory_keeps_its_mode_and_needs_a_tokenizer(text: str) -> None:
    model = PICO["gpt2"]().train()
    with pytest.raises(RecipeError, match="needs its tokenizer"):
        basis_sharing.compress(model, 0.2)
    compressed, _ = basis_sharing.compress(
        model, 0.2, tokenizer=pico_tokenizer(), calibration=text, windows=8, length=64
    )
    assert compressed is model
    assert all(module.training for module in model.modules())
    with pytest.raises(ModelError, match="already"):
        basis_sharing.compress(model, 0.2, tokenizer=pico_tokenizer(), calibration=text, windows=8, length=64)


def test_self_written_calibration_text(text: str) -> None:
    _, result = run("llama", "self", windows=2)
    assert result.calibration.windows == 2


def test_pipeline_generates(text: str, tmp_path: Path) -> None:
    save_pico("llama", tmp_path / "dense")
    basis_sharing.compress(tmp_path / "dense", 0.2, calibration=text, windows=8, length=64, output=tmp_path / "out")
    generate = pipeline("text-generation", model=str(tmp_path / "out"))
    (answer,) = generate("abc", max_new_tokens=4, do_sample=False)
    assert answer["generated_text"].startswith("abc")


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_lora_on_the_coefficients(name: str, text: str, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    compressed, _ = run(name, text)
    compressed.save_pretrained(tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    adapted = peft.get_peft_model(base, peft.LoraConfig(r=4, target_modules=["coeff"], init_lora_weights=False))
    adapted.eval()
    with torch.no_grad():
        expected = adapted(input_ids=IDS).logits
        assert not torch.allclose(expected, compressed(input_ids=IDS).logits)
    adapted.save_pretrained(tmp_path / "adapter")
    reloaded = peft.PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(tmp_path / "base"), tmp_path / "adapter"
    )
    merged = adapted.merge_and_unload()
    with torch.no_grad():
        assert torch.equal(reloaded(input_ids=IDS).logits, expected)
        assert torch.allclose(merged(input_ids=IDS).logits, expected, atol=1e-4)
    merged.save_pretrained(tmp_path / "merged")
    with torch.no_grad():
        again = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
        assert torch.equal(again(input_ids=IDS).logits, merged(input_ids=IDS).logits)


def test_training_the_factors_keeps_them_shared(text: str, tmp_path: Path) -> None:
    run("llama", text)[0].save_pretrained(tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base").train()
    before = model.model.layers[0].self_attn.q_proj.basis.weight.clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(input_ids=IDS, labels=IDS).loss.backward()
    optimizer.step()
    first, second = (model.model.layers[i].self_attn.q_proj.basis.weight for i in (0, 1))
    assert first is second
    assert not torch.equal(first, before)


def test_compile_with_inductor(text: str) -> None:
    import shutil

    if not shutil.which("g++"):
        pytest.skip("the inductor backend needs a C++ compiler")
    model, _ = run("llama", text)
    del model.model.layers[2:]  # all are alike
    torch._dynamo.reset()
    with torch.no_grad():
        expected = model(input_ids=IDS, use_cache=False).logits
        compiled = torch.compile(model, fullgraph=True)(input_ids=IDS, use_cache=False).logits
    assert torch.allclose(compiled, expected, atol=1e-4)


@pytest.mark.parametrize(("name", "starts"), [("llama", False), ("gemma3", True)])
def test_who_needs_a_first_token_is_calibrated_with_it(
    name: str, starts: bool, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[TokenWindows] = []

    def watched(*arguments: Any, **settings: Any) -> TokenWindows:
        seen.append(calibration_windows(*arguments, **settings))
        return seen[-1]

    monkeypatch.setattr(prepared, "calibration_windows", watched)
    run(name, text)
    (windows,) = seen
    assert windows.bos == starts
    assert (windows.input_ids[:, 0] == pico_tokenizer().bos_token_id).all() == starts
