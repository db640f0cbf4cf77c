"""Multimodal models: their language model is compressed, and everything beside it stays as it is."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedModel

import basis_sharing
from basis_sharing.models.decoder import describe
from basis_sharing.models.families import needs_bos
from basis_sharing.models.multimodal import text_stack, towers
from basis_sharing.models.source import load_model, resolve
from basis_sharing.plans.plan import Plan
from basis_sharing.runtime.entries_basis_sharing import Factors
from basis_sharing.runtime.modeling_basis_sharing import mend
from basis_sharing.treatments.base import install
from basis_sharing.treatments.execute import execute
from basis_sharing.weightings.none import Unweighted
from forks import fresh
from pico import TEXT
from pico_multimodal import CONFIGS, build_multimodal, picture, save_multimodal

WORDS = {"input_ids": torch.arange(24)[None]}
CASES = [
    ("gemma3", "auto"),
    ("gemma3", "svd-llm"),
    ("qwen2_5_vl", "basis-sharing"),
    ("qwen3_vl", "auto"),
    ("qwen3_5", "svd-llm"),
    ("mistral3", "basis-sharing"),
    ("llama4", "svd-llm"),
    ("smolvlm", "auto"),
]
FAMILIES = {"gemma3": "gemma", "mistral3": "mistral", "smolvlm": "llama", "llava": "llama"}


@torch.no_grad()
def logits(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    if "pixel_values" in inputs:
        inputs = {**inputs, "pixel_values": inputs["pixel_values"].to(model.dtype)}
    found: torch.Tensor = model(**inputs, use_cache=False).logits
    return found


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as stored:
            found |= {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
    return found


def beside(folder: Path) -> dict[str, tuple[torch.dtype, str]]:
    """Return dtype and SHA-256 of the tensors of the tower and the projector, by name on disk."""
    words = ("vision", "visual", "projector", "connector")
    return {
        name: (tensor.dtype, hashlib.sha256(tensor.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest())
        for name, tensor in tensors(folder).items()
        if any(word in name for word in words)
    }


class Compressed:
    def __init__(self, name: str, method: str, root: Path) -> None:
        self.dense, self.folder, self.text = root / f"{name}-dense", root / f"{name}-{method}", root / "text.txt"
        self.text.write_text(TEXT)
        if not self.dense.is_dir():
            save_multimodal(name, self.dense)
        self.model, self.result = basis_sharing.compress(
            self.dense,
            ratio=0.3,
            method=method,
            calibration=str(self.text),
            windows=4,
            length=32,
            output=self.folder,
        )


_CACHE: dict[tuple[str, str], Compressed] = {}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("multimodal")


def compressed(name: str, method: str, root: Path) -> Compressed:
    if (name, method) not in _CACHE:
        _CACHE[name, method] = Compressed(name, method, root)
    return _CACHE[name, method]


@pytest.mark.parametrize(("name", "method"), CASES)
def test_the_language_model_alone_is_compressed(name: str, method: str, root: Path) -> None:
    case = compressed(name, method, root)
    assert 0.3 <= case.result.ratio_reached < 0.36
    assert case.result.family == FAMILIES.get(name, f"{name}_text")
    dense = load_model(resolve(case.dense))
    stack = text_stack(dense)
    assert all(member.startswith(f"{stack}.") for entry in case.result.entries for member in entry.members)
    assert beside(case.folder) == beside(case.dense) != {}
    again = AutoModelForImageTextToText.from_pretrained(case.folder)
    assert type(again).__name__ == type(dense).__name__
    for inputs in (WORDS, picture(name)):
        assert torch.equal(logits(again, inputs), logits(case.model, inputs))
        assert not torch.equal(logits(again, inputs), logits(dense, inputs))
    assert not torch.allclose(logits(again, picture(name)), logits(again, picture(name, seed=2))), "it does not look"
    before, after = (json.loads((folder / "config.json").read_text()) for folder in (case.dense, case.folder))
    assert {key: after[key] for key in before} == before


@pytest.mark.parametrize("name", CONFIGS)
def test_full_rank_is_lossless(name: str) -> None:
    model = build_multimodal(name)
    mend(model)
    expected = [logits(model, inputs) for inputs in (WORDS, picture(name))]
    decoder = describe(model)
    entries = tuple(Factors(members=(p.name,), rank=min(p.d_in, p.d_out)) for p in decoder.projections)
    for outcome in list(execute(model, decoder, Plan(method="svd", ratio=0.5, entries=entries), Unweighted())):
        install(model, outcome)
    for inputs, wanted in zip((WORDS, picture(name)), expected, strict=True):
        assert torch.allclose(logits(model, inputs), wanted, atol=1e-4 * wanted.abs().max().item())


def as_on_the_hub(name: str, folder: Path) -> Path:
    """Save a model as its publisher does: old names, a tower in another dtype, a flat configuration, a processor."""
    save_multimodal(name, folder)
    renamed = {
        key.replace("vision_tower.", "vision_tower.vision_model.") if name == "llava" else key: (
            tensor.clone() if "vis" in key else tensor.to(torch.bfloat16)
        )
        for key, tensor in tensors(folder).items()
    }
    save_file(renamed, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["dtype"] = "bfloat16"
    if name == "qwen2_5_vl":
        config |= {key: value for key, value in config.pop("text_config").items() if key not in config}
    (folder / "config.json").write_text(json.dumps(config))
    for file in ("preprocessor_config.json", "processor_config.json", "chat_template.json"):
        (folder / file).write_text(json.dumps({"chat_template": file}))
    return folder


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_names_dtypes_and_processors_are_those_of_the_publisher(name: str, tmp_path: Path) -> None:
    dense = as_on_the_hub(name, tmp_path / "dense")
    small, multiplied = tmp_path / "small", tmp_path / "multiplied"
    model, result = basis_sharing.compress(dense, ratio=0.3, method="svd", output=small)
    assert model.dtype == torch.bfloat16
    assert torch.float32 in {dtype for dtype, _ in beside(dense).values()}
    basis_sharing.export(small, multiplied)
    assert tensors(multiplied).keys() == tensors(dense).keys()
    for folder in (small, multiplied):
        assert beside(folder) == beside(dense)
        for file in ("preprocessor_config.json", "processor_config.json", "chat_template.json"):
            assert (folder / file).read_text() == (dense / file).read_text()
    loaded, _ = basis_sharing.load(small, device="cpu")
    assert loaded.dtype == torch.bfloat16
    assert torch.equal(logits(loaded, picture(name)), logits(model, picture(name)))
    assert result.after.bytes_on_disk == (small / "model.safetensors").stat().st_size
    exact = AutoModelForImageTextToText.from_pretrained(multiplied, dtype=torch.float32)
    ours = AutoModelForImageTextToText.from_pretrained(small, dtype=torch.float32)
    wanted = logits(ours, picture(name))
    assert torch.allclose(logits(exact, picture(name)), wanted, atol=0.05 * wanted.abs().max().item())


def test_a_model_in_memory(root: Path) -> None:
    case, model = compressed("smolvlm", "auto", root), build_multimodal("smolvlm")
    tokenizer = basis_sharing.load(case.dense, device="cpu")[1]
    settings: dict[str, Any] = {"calibration": str(case.text), "windows": 4, "length": 32}
    ours, _ = basis_sharing.compress(model, ratio=0.3, tokenizer=tokenizer, **settings)
    assert torch.equal(logits(ours, picture("smolvlm")), logits(case.model, picture("smolvlm")))


def test_inspect_lists_towers_and_projectors(root: Path) -> None:
    case = compressed("gemma3", "auto", root)
    inspection = basis_sharing.inspect(case.dense)
    rows = {row.name: row for row in inspection.rows}
    model = build_multimodal("gemma3")
    assert set(towers(model)) == {"model.vision_tower", "model.multi_modal_projector"}
    for name, tower in towers(model).items():
        assert rows[name].parameters == sum(parameter.numel() for parameter in tower.parameters())
        assert not rows[name].compressible
        assert rows[name].reason == "beside the language model: stays as it is, to the byte"
    assert rows["embeddings"].shapes == ((260, 64),)
    assert sum(row.parameters for row in rows.values()) == sum(p.numel() for p in model.parameters())


def test_training_leaves_towers_alone(root: Path, tmp_path: Path) -> None:
    case, out = compressed("qwen2_5_vl", "basis-sharing", root), tmp_path / "out"
    settings: dict[str, Any] = {"preset": "next-token", "epochs": 1, "windows": 4, "length": 32}
    report = basis_sharing.recover(case.folder, out, calibration=str(case.text), device="cpu", **settings).recovery
    assert report is not None
    model = AutoModelForImageTextToText.from_pretrained(out)
    outside = [*towers(model).values(), model.get_input_embeddings()]
    inside = sum(p.numel() for p in model.parameters()) - sum(p.numel() for part in outside for p in part.parameters())
    assert report.trained_parameters == inside - model.get_output_embeddings().weight.numel()
    assert beside(out) == beside(case.dense)
    assert not torch.equal(logits(model, picture("qwen2_5_vl")), logits(case.model, picture("qwen2_5_vl")))
    assert "use_cache" not in json.loads((out / "config.json").read_text())


def test_the_folder_says_how_it_is_loaded(root: Path) -> None:
    case = compressed("mistral3", "basis-sharing", root)
    card = (case.folder / "README.md").read_text()
    assert "pipeline_tag: image-text-to-text" in card
    assert 'model = AutoModelForImageTextToText.from_pretrained("' in card
    assert "AutoModelForCausalLM" not in card
    assert json.loads((case.folder / "config.json").read_text())["auto_map"] == {
        "AutoConfig": "modeling_basis_sharing.Mistral3Config",
        "AutoModelForImageTextToText": "modeling_basis_sharing.Mistral3ForConditionalGeneration",
    }


FRESH = """
import sys, torch, basis_sharing
from transformers import AutoModelForImageTextToText
from pico_multimodal import picture
folder, dense, text, out = sys.argv[1:]
assert basis_sharing.inspect(folder).family == "gemma"
found = basis_sharing.evaluate(folder, text, evaluation_windows=2, length=32, device="cpu").perplexities
print(found[0].perplexity)
basis_sharing.export(folder, dense)
model = AutoModelForImageTextToText.from_pretrained(folder)
multiplied = AutoModelForImageTextToText.from_pretrained(dense)
with torch.no_grad():
    seen = [each(**picture("gemma3"), use_cache=False).logits for each in (model, multiplied)]
torch.save(seen, out)
"""
REMOTE = """
import sys, torch
from transformers import AutoModelForImageTextToText
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in repr(finder).lower()]
sys.path = [path for path in sys.path if not path.endswith("/src")]
from pico_multimodal import picture
folder, out = sys.argv[1:]
model = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True)
assert "basis_sharing" not in sys.modules
with torch.no_grad():
    torch.save(model(**picture("gemma3"), use_cache=False).logits, out)
"""


def test_fresh_processes_with_and_without_the_package(root: Path, tmp_path: Path) -> None:
    case = compressed("gemma3", "svd-llm", root)
    expected = logits(case.model, picture("gemma3"))
    arguments = (case.folder, tmp_path / "dense", case.text, tmp_path / "seen.pt")
    started = [
        fresh(FRESH, *arguments, cwd=tmp_path, path=[Path(basis_sharing.__file__).parents[1]]),
        fresh(REMOTE, case.folder, tmp_path / "remote.pt", cwd=tmp_path),
    ]
    ours, remote = (process.wait() for process in started)
    assert ours.returncode == 0, ours.stderr[-3000:]
    assert float(ours.stdout) > 1
    assert remote.returncode == 0, remote.stderr[-3000:]
    seen, multiplied = torch.load(tmp_path / "seen.pt")
    assert torch.equal(seen, expected)
    assert torch.allclose(multiplied, expected, atol=1e-4 * expected.abs().max().item())
    assert torch.equal(torch.load(tmp_path / "remote.pt"), expected)
    assert beside(tmp_path / "dense") == beside(case.dense)


def test_damaged_folders_are_refused_although_names_on_disk_differ(root: Path, tmp_path: Path) -> None:
    case = compressed("gemma3", "auto", root)
    shutil.copytree(case.folder, tmp_path / "damaged")
    stored = tensors(tmp_path / "damaged")
    basis = next(name for name in stored if name.endswith("basis.weight"))
    del stored[basis]
    save_file(stored, tmp_path / "damaged" / "model.safetensors", {"format": "pt"})
    with pytest.raises(basis_sharing.CheckpointError, match=r"lack model\.language_model\.layers\.\d\..*basis\.weight"):
        basis_sharing.load(tmp_path / "damaged", device="cpu")


@pytest.mark.parametrize(
    ("name", "wanted"),
    [("gemma3", True), ("gemma3n", True), ("gemma4", True), ("qwen2_5_vl", False), ("gemma3_text", True)],
)
def test_windows_begin_as_the_language_model_needs_it(name: str, wanted: bool) -> None:
    assert needs_bos(AutoConfig.for_model(name)) == wanted


def test_models_of_text_alone_have_nothing_beside() -> None:
    from pico import PICO

    model: PreTrainedModel = PICO["llama"]()
    assert (text_stack(model), towers(model)) == ("", {})


def test_models_that_need_a_picture_with_every_text_are_refused() -> None:
    config = AutoConfig.for_model("blip-2", text_config={"model_type": "opt", "num_hidden_layers": 1})
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    with pytest.raises(basis_sharing.ModelError, match=r"does not run on text alone \(.*pixel_values"):
        describe(model)
