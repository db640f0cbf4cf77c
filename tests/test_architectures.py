"""Every decoder that transformers lists, tiny, against the table of outcomes in ``fixtures/architectures.json``.

A quarter of them are described in every run of the tests, and a shard goes the whole way: calibrated block by block,
compressed by the default method, written, loaded again, evaluated. All of them do both with
``pytest -m "architectures or not architectures" tests/test_architectures.py``; ``python tests/test_architectures.py``
writes the table anew, here and in the docs.
"""

import json
from pathlib import Path
from textwrap import fill
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import basis_sharing
from architectures import decoders, tiny
from basis_sharing.calibration.forward import sweep
from basis_sharing.calibration.moments import Statistics
from basis_sharing.errors import ModelError
from basis_sharing.models.decoder import block_parameters, describe
from pico import TEXT, pico_tokenizer

TABLE = Path(__file__).parent / "fixtures" / "architectures.json"
KNOWN: dict[str, Any] = json.loads(TABLE.read_text()) if TABLE.is_file() else {}
PAGE = Path(__file__).parents[1] / "docs" / "models.md"
SHARDS = 24
UNUSUAL = ["deepseek_v32", "falcon", "gemma3n_text", "sarvam_moe"]
SHARD = [*decoders()[::SHARDS], *UNUSUAL]
DESCRIBED = decoders()[::4]
WORKS = [model_type for model_type in decoders() if "refused" not in KNOWN.get(model_type, {})]
IDS = torch.randint(0, 250, (2, 48), generator=torch.Generator().manual_seed(0))


def outcome(model: Any) -> dict[str, Any]:
    """Return the fraction of a model's block parameters that can be compressed, or the sentence of its refusal."""
    try:
        decoder = describe(model)
    except ModelError as error:
        return {"refused": str(error)}
    total = sum(parameter.numel() for _, _, parameter in block_parameters(model, decoder.blocks))
    return {"compressible": round(sum(part.d_in * part.d_out for part in decoder.parts) / total, 3)}


def test_the_table_has_every_decoder_of_transformers() -> None:
    assert list(KNOWN) == decoders()
    assert sum("refused" in found for found in KNOWN.values()) <= 8


def test_the_page_has_the_table() -> None:
    assert PAGE.read_text(encoding="utf-8").endswith(listed(KNOWN))


@pytest.mark.parametrize(
    "model_type",
    [t if t in DESCRIBED else pytest.param(t, marks=pytest.mark.architectures) for t in decoders()],
)
def test_what_can_be_compressed(model_type: str) -> None:
    assert outcome(tiny(model_type)) == KNOWN.get(model_type)


@pytest.mark.parametrize(
    "model_type",
    [t if t in SHARD else pytest.param(t, marks=pytest.mark.architectures) for t in WORKS],
)
def test_the_whole_way(model_type: str, tmp_path: Path) -> None:
    model = tiny(model_type)
    check_moments(model)
    text, dense, small = tmp_path / "text.txt", tmp_path / "dense", tmp_path / "small"
    text.write_text(TEXT)
    model.save_pretrained(dense)
    pico_tokenizer().save_pretrained(dense)
    settings: dict[str, Any] = {"calibration": str(text), "windows": 4, "length": 48}
    compressed, result = basis_sharing.compress(dense, ratio=0.3, output=small, dtype="float32", **settings)
    assert result.ratio_reached > 0.25  # more, where the loss does not feel it: compressors of DeepSeek V4
    again = AutoModelForCausalLM.from_pretrained(small, dtype=torch.float32)
    again.save_pretrained(tmp_path / "again")
    for loaded in (again, AutoModelForCausalLM.from_pretrained(tmp_path / "again", dtype=torch.float32)):
        # Zaya's own dense model differs by 2e-6 after loading, with equal weights.
        assert torch.allclose(logits(loaded), logits(compressed), atol=1e-5)
    assert basis_sharing.evaluate(small, str(text), length=48, evaluation_windows=4).perplexity > 1


def check_moments(model: Any) -> None:
    """Compare the second moments of the sweep with those of passes of the whole model."""
    decoder = describe(model)
    expected: dict[tuple[int, str], Any] = {}
    handles = []
    for key, projection in {(p.block, p.input): p for p in reversed(decoder.projections)}.items():

        def hook(_: Any, args: Any, key: tuple[int, str] = key) -> None:
            x = args[0].detach().flatten(0, -2).double()
            expected[key] = expected.get(key, 0) + x.T @ x

        handles.append(model.get_submodule(projection.name).register_forward_pre_hook(hook))
    for window in IDS:
        logits(model, window[None])
    for handle in handles:
        handle.remove()
    for block, moments in sweep(model, decoder, IDS, Statistics(gram=True), dtype=torch.float32):
        for name, moment in moments.items():
            assert moment.gram is not None
            error = (moment.gram - expected[block, name]).norm() / expected[block, name].norm().clamp_min(1e-9)
            assert error < 1e-4, (block, name)


@torch.no_grad()
def logits(model: Any, ids: torch.Tensor = IDS) -> torch.Tensor:
    found: torch.Tensor = model(input_ids=ids, use_cache=False).logits
    return found


def listed(known: dict[str, Any]) -> str:
    """Return the end of the page: the models that work, with the fraction that can be compressed."""
    works = [f"{name} {found['compressible']}" for name, found in known.items() if "refused" not in found]
    return f"\n## Works: {len(works)} of {len(known)}\n\n{fill(', '.join(works), 128)}\n"


def write_table() -> None:
    """Write the table of outcomes anew."""
    known = {model_type: outcome(tiny(model_type)) for model_type in decoders()}
    TABLE.write_text(json.dumps(known, indent=1) + "\n")
    page = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(page[: page.index("\n## Works")] + listed(known), encoding="utf-8")


if __name__ == "__main__":
    write_table()
