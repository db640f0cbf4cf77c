"""The tools of docs/tools.md, each on a compressed folder as its own pages say, without anything of ours in between.

Those that are not installed are skipped; ``make tools`` installs all of them.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    Trainer,
    TrainingArguments,
    pipeline,
)

import basis_sharing
from pico import PAD, TEXT, save_pico

PROMPTS = ["The quick brown fox", "so does every other animal", "The"]
NEW = 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A compressed model in fp32, pivoted, with bases that two blocks share."""
    path = tmp_path_factory.mktemp("tools")
    save_pico("llama", path / "model", blocks=4)
    settings: dict[str, Any] = {"method": "basis-sharing", "windows": 6, "length": 64, "calibration_dtype": "float32"}
    basis_sharing.compress(path / "model", ratio=0.3, output=path / "small", form="pivoted", **settings)
    return path / "small"


@pytest.fixture(scope="module")
def greedy(folder: Path) -> list[list[int]]:
    """The tokens that the model chooses after every prompt, found without a cache."""
    model, tokenizer = loaded(folder)
    found = []
    for prompt in PROMPTS:
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        for _ in range(NEW):
            with torch.no_grad():
                ids = torch.cat([ids, model(ids, use_cache=False).logits[:, -1:].argmax(-1)], 1)
        found.append(ids[0, -NEW:].tolist())
    return found


def loaded(folder: Path) -> tuple[Any, Any]:
    model = AutoModelForCausalLM.from_pretrained(folder)
    return model.eval(), AutoTokenizer.from_pretrained(folder, padding_side="left")


def generated(model: Any, tokenizer: Any, prompts: list[str], **settings: Any) -> list[list[int]]:
    inputs = tokenizer(prompts, return_tensors="pt", padding=True)
    options = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False, "pad_token_id": 258, **settings}
    return [row[-NEW:].tolist() for row in model.generate(**inputs, **options)]


@pytest.mark.parametrize("cache", ["dynamic", "static", None])
def test_generate_with_every_cache(cache: str | None, folder: Path, greedy: list[list[int]]) -> None:
    settings = {"use_cache": False} if cache is None else {"cache_implementation": cache, "disable_compile": True}
    assert generated(*loaded(folder), PROMPTS, **settings) == greedy


def test_beams(folder: Path) -> None:
    model, tokenizer = loaded(folder)
    together = generated(model, tokenizer, PROMPTS, num_beams=3)
    assert together == [generated(model, tokenizer, [prompt], num_beams=3)[0] for prompt in PROMPTS]


def test_pipeline(folder: Path, greedy: list[list[int]]) -> None:
    model, tokenizer = loaded(folder)
    run = pipeline("text-generation", model=model, tokenizer=tokenizer)
    (answer,) = run(PROMPTS[0], max_new_tokens=NEW, do_sample=False, return_tensors=True)
    assert answer["generated_token_ids"][-NEW:] == greedy[0]


def test_export_by_pytorch(folder: Path) -> None:
    model, _ = loaded(folder)
    ids = torch.arange(12)[None]
    with torch.no_grad():
        program = torch.export.export(model, (), {"input_ids": ids, "use_cache": False}, strict=False)
        torch.testing.assert_close(program.module()(input_ids=ids, use_cache=False).logits, model(ids).logits)


def texts(tokenizer: Any) -> list[dict[str, Any]]:
    return [dict(tokenizer(TEXT[start : start + 64])) for start in range(0, 512, 64)]


def test_trainer(folder: Path, tmp_path: Path) -> None:
    model, tokenizer = loaded(folder)
    tokenizer.pad_token = PAD
    arguments = TrainingArguments(
        tmp_path / "out", max_steps=6, learning_rate=1e-2, gradient_checkpointing=True, report_to=[], use_cpu=True
    )
    trainer = Trainer(
        model, arguments, DataCollatorForLanguageModeling(tokenizer, mlm=False), texts(tokenizer), texts(tokenizer)
    )
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < before
    trainer.save_model(str(tmp_path / "saved"))
    again, _ = loaded(tmp_path / "saved")
    ids = torch.arange(12)[None]
    with torch.no_grad():
        torch.testing.assert_close(again(ids).logits, model.eval()(ids).logits)


def test_trl(folder: Path, tmp_path: Path) -> None:
    trl = pytest.importorskip("trl")
    datasets = pytest.importorskip("datasets")
    model, tokenizer = loaded(folder)
    tokenizer.pad_token = PAD
    config = trl.SFTConfig(
        str(tmp_path / "out"), max_steps=4, report_to=[], use_cpu=True, bf16=False, learning_rate=1e-2
    )
    data = datasets.Dataset.from_list([{"text": TEXT[start : start + 64]} for start in range(0, 512, 64)])
    trainer = trl.SFTTrainer(model, args=config, train_dataset=data, eval_dataset=data, processing_class=tokenizer)
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < before


def test_torchao(folder: Path) -> None:
    quantization = pytest.importorskip("torchao.quantization")
    model, _ = loaded(folder)
    ids = torch.arange(24)[None]
    with torch.no_grad():
        expected = model(ids).logits
        quantization.quantize_(model, quantization.Int8WeightOnlyConfig())
        found = model(ids).logits
    assert (found - expected).abs().mean() < 0.05 * expected.std()
    assert any(
        "Int8" in type(parameter).__name__ or "Affine" in type(parameter).__name__ for parameter in model.parameters()
    )


def exported(folder: Path, tmp_path: Path, to: str) -> Path:
    return basis_sharing.export(folder, tmp_path / to, to=to)


def test_onnxruntime_genai(folder: Path, greedy: list[list[int]], tmp_path: Path) -> None:
    genai = pytest.importorskip("onnxruntime_genai")
    model = genai.Model(str(exported(folder, tmp_path, "onnx")))
    tokenizer, settings = genai.Tokenizer(model), genai.GeneratorParams(model)
    prompt = tokenizer.encode(PROMPTS[0])
    settings.set_search_options(max_length=len(prompt) + NEW, do_sample=False)
    generator = genai.Generator(model, settings)
    generator.append_tokens(prompt)
    while not generator.is_done():
        generator.generate_next_token()
    assert list(generator.get_sequence(0))[len(prompt) :] == greedy[0]


def test_openvino_genai(folder: Path, greedy: list[list[int]], tmp_path: Path) -> None:
    genai = pytest.importorskip("openvino_genai")
    pipe = genai.LLMPipeline(str(exported(folder, tmp_path, "openvino")), "CPU")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = pipe.generate(PROMPTS[0], max_new_tokens=NEW, apply_chat_template=False, ignore_eos=True)
    assert str(text) == tokenizer.decode(greedy[0])


def test_mlx_lm(folder: Path, greedy: list[list[int]], tmp_path: Path) -> None:
    mlx_lm = pytest.importorskip("mlx_lm")
    model, tokenizer = mlx_lm.load(
        str(exported(folder, tmp_path, "mlx")), tokenizer_config={"trust_remote_code": True}, trust_remote_code=True
    )
    answers = mlx_lm.stream_generate(model, tokenizer, tokenizer.encode(PROMPTS[0]), max_tokens=NEW)
    assert [answer.token for answer in answers] == greedy[0]


def test_dense_folders_know_nothing_of_us(folder: Path, greedy: list[list[int]], tmp_path: Path) -> None:
    dense = exported(folder, tmp_path, "dense")
    assert "quantization_config" not in json.loads((dense / "config.json").read_text())
    assert generated(*loaded(dense), PROMPTS) == greedy
