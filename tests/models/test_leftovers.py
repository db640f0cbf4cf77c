"""What the files hold and the architecture has no place for: noted or refused, by every way into the package."""

import json
import re
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from basis_sharing import inspect
from basis_sharing.errors import ModelError, ModelWarning
from basis_sharing.models.source import load_model, load_with_notes, refuse_compressed, resolve
from pico import PICO, save_pico

Weights = dict[str, torch.Tensor]


def edited(folder: Path, change: Callable[[Weights], Weights], *, family: str = "llama", **config: object) -> Path:
    save_pico(family, folder)
    weights = change(load_file(folder / "model.safetensors"))
    (folder / "model.safetensors").unlink()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, **config}))
    return folder


def adding(**tensors: torch.Tensor) -> Callable[[Weights], Weights]:
    return lambda weights: weights | {name.replace("__", "."): tensor for name, tensor in tensors.items()}


def renaming(rule: Callable[[str], str]) -> Callable[[Weights], Weights]:
    return lambda weights: {rule(name): weight for name, weight in weights.items()}


def per_projection(
    suffix: str, made: Callable[[torch.Tensor], torch.Tensor] | None = None, scale: torch.Tensor | None = None
) -> Callable[[Weights], Weights]:
    """Store projections by ``made``, and something beside each of them under another ending."""

    def change(weights: Weights) -> Weights:
        stored: Weights = {}
        for name, weight in weights.items():
            projection = "proj" in name
            stored[name] = made(weight) if made is not None and projection else weight
            if projection:
                stored[name.removesuffix("weight") + suffix] = torch.ones(1) if scale is None else scale.clone()
        return stored

    return change


def fp8(weight: torch.Tensor) -> torch.Tensor:
    return weight.to(torch.float8_e4m3fn)


def int8(weight: torch.Tensor) -> torch.Tensor:
    return (weight * 100).to(torch.int8)


CODES = {
    "fp8 with scales": per_projection("weight_scale_inv", fp8),
    "fp8 alone": lambda weights: {name: fp8(w) if "proj" in name else w for name, w in weights.items()},
    "int8 with scales": per_projection("SCB", int8),
    "scales beside weights": per_projection("weight_scale"),
    "scales of another tool": per_projection("scales"),
    "zero points": per_projection("weight_zero_point"),
    "packed": lambda weights: renaming(lambda name: name.replace("proj.weight", "proj.qweight"))(weights),
    "bitsandbytes": per_projection("weight.absmax", lambda weight: torch.zeros(9, 1, dtype=torch.uint8)),
    "mxfp4": per_projection("weight_blocks", scale=torch.zeros(4, 4, dtype=torch.uint8)),
}


@pytest.mark.parametrize("kind", CODES)
def test_codes_and_scales_are_refused(kind: str, tmp_path: Path) -> None:
    folder = edited(tmp_path / "model", CODES[kind])
    with pytest.raises(ModelError, match=r"quantized weights.*give the original weights"):
        load_model(resolve(folder))


def test_codes_are_refused_before_anything_is_described(tmp_path: Path) -> None:
    folder = edited(tmp_path / "model", CODES["fp8 with scales"])
    with pytest.raises(ModelError, match=r"\(70, the first is model\.layers\.0\.mlp\.down_proj\.weight"):
        inspect(folder)
    (folder / "hf_quant_config.json").write_text(json.dumps({"quantization": {"quant_algo": "FP8"}}))
    with pytest.raises(ModelError, match=r"quantized with FP8 \(hf_quant_config\.json\)"):
        inspect(folder)
    (folder / "hf_quant_config.json").write_text("{")
    with pytest.raises(ModelError, match="quantized with ModelOpt"):
        refuse_compressed(resolve(folder))


HEAD = torch.zeros(3, 4)
OLD = {
    "transformer__h__0__attn__bias": torch.ones(1, 1, 8, 8, dtype=torch.uint8),
    "transformer__h__0__attn__masked_bias": torch.tensor(-1e4),
    "model__layers__0__self_attn__rotary_emb__inv_freq": torch.zeros(4),
    "gpt_neox__layers__0__attention__bias": torch.ones(1, 1, 8, 8, dtype=torch.bool),
    "model__position_ids": torch.zeros(1, 8, dtype=torch.int64),
}


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "mixtral"])
def test_prediction_heads_are_noted_and_old_buffers_are_not(family: str, tmp_path: Path) -> None:
    folder = edited(tmp_path / "old", adding(**OLD), family=family)
    model, notes = load_with_notes(resolve(folder))
    assert notes == []
    torch.testing.assert_close(model.state_dict(), PICO[family]().state_dict())
    extra = adding(**OLD, mtp__layers__0__self_attn__q_proj__weight=HEAD, v_head__bias=torch.zeros(2))
    _, (note,) = load_with_notes(resolve(edited(tmp_path / "new", extra, family=family)))
    assert note == (
        "2 stored weights (14 parameters) have no place in the architecture and are not carried along: the first is "
        "mtp.layers.0.self_attn.q_proj.weight."
    )


def test_what_a_class_drops_without_a_report_is_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(PICO["llama"]()), "_keys_to_ignore_on_load_unexpected", [r"^mtp.*", r"norm\.weight"])
    folder = edited(tmp_path / "model", adding(mtp__norm__weight=HEAD))
    _, (note,) = load_with_notes(resolve(folder))
    assert note.startswith("1 stored weights (12 parameters)")
    assert note.endswith("mtp.norm.weight.")


@pytest.mark.parametrize(
    ("family", "setting"), [("llama", "num_hidden_layers"), ("gpt2", "n_layer"), ("mixtral", "num_hidden_layers")]
)
def test_uncounted_blocks_are_refused(family: str, setting: str, tmp_path: Path) -> None:
    folder = edited(tmp_path / "model", dict, family=family, **{setting: 3})
    blocks = 4 if family == "mixtral" else 5
    with pytest.raises(ModelError, match=rf"holds {blocks} blocks, but its config\.json counts 3"):
        load_model(resolve(folder))


def test_blocks_that_predict_further_tokens_are_noted(tmp_path: Path) -> None:
    folder = edited(tmp_path / "announced", dict, num_hidden_layers=4, num_nextn_predict_layers=1)
    assert "9 stored weights" in load_with_notes(resolve(folder))[1][0]
    folder = edited(tmp_path / "named", adding(model__layers__4__eh_proj__weight=HEAD), num_hidden_layers=4)
    assert "10 stored weights" in load_with_notes(resolve(folder))[1][0]


@pytest.mark.parametrize(
    ("rule", "prefix"),
    [
        (lambda name: f"module.{name}", "module."),
        (lambda name: f"_orig_mod.{name}", "_orig_mod."),
        (lambda name: f"base_model.model.{name}", "base_model.model."),
        (lambda name: f"module._orig_mod.{name}", "module."),
        (lambda name: f"_fsdp_wrapped_module.{name}", "_fsdp_wrapped_module."),
        (
            lambda name: re.sub(r"(layers\.\d+\.)", r"\1_checkpoint_wrapped_module.", name),
            "_checkpoint_wrapped_module.",
        ),
        (lambda name: f"policy.{name}", "policy."),
    ],
)
def test_prefixes_of_wrappers_are_named(rule: Callable[[str], str], prefix: str, tmp_path: Path) -> None:
    folder = edited(tmp_path / "model", renaming(rule))
    with pytest.raises(ModelError, match="rename each") as caught:
        load_model(resolve(folder))
    assert repr(prefix) in str(caught.value)
    assert "download" not in str(caught.value)


def test_weights_of_a_model_in_a_model_load(tmp_path: Path) -> None:
    folder = edited(tmp_path / "model", renaming(lambda name: f"model.{name}"))
    torch.testing.assert_close(load_model(resolve(folder)).state_dict(), PICO["llama"]().state_dict())


def test_adapters_that_are_not_merged_are_refused(tmp_path: Path) -> None:
    extra = adding(model__layers__0__self_attn__q_proj__lora_A__weight=HEAD)
    with pytest.raises(ModelError, match=r"merge it \(merge_and_unload of peft\)"):
        load_model(resolve(edited(tmp_path / "model", extra)))


def test_tied_weights_that_are_stored_twice(tmp_path: Path) -> None:
    def twice(factor: float) -> Callable[[Weights], Weights]:
        return lambda weights: weights | {"lm_head.weight": weights["model.embed_tokens.weight"] * factor}

    model, notes = load_with_notes(resolve(edited(tmp_path / "equal", twice(1))))
    assert notes == []
    assert model.lm_head.weight is model.model.embed_tokens.weight
    model, (note,) = load_with_notes(resolve(edited(tmp_path / "different", twice(2))))
    assert "two different ones: both are kept" in note
    assert not model.config.tie_word_embeddings
    model.save_pretrained(tmp_path / "again")
    again, notes = load_with_notes(resolve(tmp_path / "again"))
    assert notes == []
    torch.testing.assert_close(again.state_dict(), model.state_dict())


# --- adapters beside weights


def adapter_config(folder: Path, base: str | None = "org/base") -> None:
    settings = {"peft_type": "LORA", "r": 2, "target_modules": ["q_proj"], "base_model_name_or_path": base}
    (folder / "adapter_config.json").write_text(json.dumps(settings))


def with_adapter(folder: Path) -> Path:
    from peft import LoraConfig, get_peft_model

    save_pico("llama", folder)
    tuned = get_peft_model(PICO["llama"](), LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False))
    tuned.save_pretrained(folder)
    return folder


def test_an_adapter_beside_merged_weights_is_not_applied(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    folder = with_adapter(tmp_path / "merged")
    with pytest.warns(ModelWarning, match=r"adapter_config\.json beside the weights was left aside"):
        model = load_model(resolve(folder))
    torch.testing.assert_close(model.state_dict(), PICO["llama"]().state_dict())
    model.save_pretrained(tmp_path / "again")
    assert not list((tmp_path / "again").glob("adapter*"))


def test_an_adapter_beside_a_compressed_model_is_not_applied(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("peft")
    from basis_sharing import compress, load
    from basis_sharing.cli.main import main

    (tmp_path / "text.txt").write_text("The quick brown fox jumps over the lazy dog. " * 60)
    settings = {"calibration": str(tmp_path / "text.txt"), "windows": 4, "length": 64}
    folder = with_adapter(tmp_path / "merged")
    with warnings.catch_warnings():
        warnings.simplefilter("error", ModelWarning)  # compress has a result to say it in
        small, result = compress(folder, 0.2, output=tmp_path / "small", **settings)
    assert any("left aside" in note for note in result.notes)
    adapter_config(tmp_path / "small")
    with pytest.warns(ModelWarning, match="left aside"):
        torch.testing.assert_close(load(tmp_path / "small")[0].state_dict(), small.state_dict())
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(["evaluate", str(tmp_path / "small"), "--text", str(tmp_path / "text.txt"), "--length", "64"])
    assert f"note: {tmp_path / 'small'}: adapter_config.json beside" in capsys.readouterr().err


@pytest.mark.parametrize("base", ["org/base", None])
@pytest.mark.parametrize("with_config", [False, True])
def test_an_adapter_alone_is_named(base: str | None, with_config: bool, tmp_path: Path) -> None:
    folder = save_pico("llama", tmp_path / "model")
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    adapter_config(folder, base)
    if not with_config:
        (folder / "config.json").unlink()
    with pytest.raises(ModelError, match=f"an adapter for {base or 'a model it does not name'}.*merge it"):
        load_model(resolve(folder))
