"""GGUF files that hold no whole language model are refused by what they are."""

from pathlib import Path

import numpy as np
import pytest

from basis_sharing.errors import ModelError
from basis_sharing.models.gguf_files import check_gguf
from basis_sharing.models.source import load_config, load_skeleton, load_tokenizer, resolve

gguf = pytest.importorskip("gguf")


def written(file: Path, architecture: str = "llama", *, tensors: int = 1, split: int = 0, **fields: object) -> Path:
    writer = gguf.GGUFWriter(str(file), architecture)
    for name, value in fields.items():
        if isinstance(value, str):
            writer.add_string(name.replace("__", "."), value)
        else:
            writer.add_uint32(name.replace("__", "."), value)
    writer.add_array("tokenizer.ggml.tokens", ["a", "b"])
    writer.add_array("some.numbers", [1, 2, 3])
    if split:
        writer.add_uint16("split.count", split)
    for index in range(tensors):
        writer.add_tensor(f"blk.{index}.attn_norm.weight", np.ones(64, np.float32))
    for write in (
        writer.write_header_to_file,
        writer.write_kv_data_to_file,
        writer.write_tensors_to_file,
        writer.close,
    ):
        write()
    return file


WHOLE = {"llama__block_count": 1, "llama__embedding_length": 64}


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        ("model-00001-of-00002.gguf", WHOLE, "is one of 2 parts of a model: merge the parts first, with gguf-split"),
        ("renamed.gguf", {**WHOLE, "split": 3}, "is one of 3 parts"),
        ("renamed.gguf", {"llama__block_count": 1}, r"does not say its llama\.embedding_length"),
        ("renamed.gguf", {}, r"does not say its llama\.block_count"),
        ("vocab.gguf", {**WHOLE, "tensors": 0}, "a vocabulary and no weights"),
        ("mmproj.gguf", {"architecture": "clip"}, "the vision part of a multimodal model"),
        ("mmproj.gguf", {**WHOLE, "general__type": "mmproj"}, "the projector of a multimodal model"),
        ("lora.gguf", {**WHOLE, "general__type": "adapter"}, "an adapter, not a model"),
        ("imatrix.gguf", {**WHOLE, "general__type": "imatrix"}, "an importance matrix"),
    ],
)
def test_what_is_no_whole_model(name: str, settings: dict[str, object], words: str, tmp_path: Path) -> None:
    file = written(tmp_path / name, **settings)
    for action in (load_config, load_skeleton):
        with pytest.raises(ModelError, match=words):
            action(resolve(file))
        with pytest.raises(ModelError, match=words):
            action(resolve(tmp_path))


def test_a_folder_of_parts_is_named_as_such(tmp_path: Path) -> None:
    for part in (1, 2):
        written(tmp_path / f"model-0000{part}-of-00002.gguf", **WHOLE)
    with pytest.raises(ModelError, match="parts of a model"):
        resolve(tmp_path)


def test_one_part_of_one_is_whole(tmp_path: Path) -> None:
    check_gguf(written(tmp_path / "model-00001-of-00001.gguf", **WHOLE))


def test_every_cut_is_damage(tmp_path: Path) -> None:
    content = written(tmp_path / "model.gguf", **WHOLE).read_bytes()
    cut = tmp_path / "cut.gguf"
    for size in range(1, len(content)):
        cut.write_bytes(content[:size])
        with pytest.raises(ModelError, match=r"is damaged|is truncated"):
            check_gguf(cut)
    with pytest.raises(ModelError, match="is truncated"):
        load_tokenizer(resolve(cut))
