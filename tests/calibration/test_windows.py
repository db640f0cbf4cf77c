"""Token windows: drawn for calibration, consecutive for evaluation, or read from a file."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from basis_sharing.calibration.corpora import parse_source, read_text
from basis_sharing.calibration.windows import (
    EvaluationText,
    TokenWindows,
    calibration_windows,
    evaluation_windows,
    fingerprint_ids,
)
from basis_sharing.errors import CorpusError
from pico import PICO, VOCAB, pico_tokenizer

DATA = Path(__file__).parents[2].parent / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the shared data is not here")

TOKENIZER = pico_tokenizer()
TEXT = "".join(f"{i:05d}" for i in range(200))  # 1,000 bytes, every group of five different


def calibrate(spec: object, **settings: Any) -> TokenWindows:
    asked = {"tokenizer": TOKENIZER, "windows": 4, "length": 10, "seed": 1, "vocab_size": VOCAB}
    return calibration_windows(str(spec), **{**asked, **settings})


def evaluate(spec: object, **settings: Any) -> EvaluationText:
    asked = {"tokenizer": TOKENIZER, "windows": None, "length": 10, "vocab_size": VOCAB, "bos": False}
    return evaluation_windows(str(spec), **{**asked, **settings})


def decoded(ids: torch.Tensor) -> list[str]:
    return [TOKENIZER.decode(window) for window in ids]


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "a.txt"
    path.write_text(TEXT)
    return path


# Calibration


def test_windows_are_drawn_without_overlap_in_text_order(text: Path) -> None:
    result = calibrate(text, windows=30)
    positions = [TEXT.index(window) for window in decoded(result.input_ids)]
    assert result.input_ids.shape == (30, 10)
    assert result.input_ids.dtype == torch.int64
    assert result.source == str(text)
    assert result.notes == ()
    assert positions == sorted(set(positions))
    assert all(position % 10 == 0 for position in positions)


def test_seed_decides_the_draw(text: Path) -> None:
    first, again, other = calibrate(text), calibrate(text), calibrate(text, seed=2)
    assert torch.equal(first.input_ids, again.input_ids)
    assert first.fingerprint == again.fingerprint
    assert first.fingerprint != other.fingerprint


def test_draw_is_the_same_on_every_machine(text: Path) -> None:
    """Frozen: a change here silently changes everybody's calibration data."""
    positions = [TEXT.index(window) // 10 for window in decoded(calibrate(text, seed=2023).input_ids)]
    assert positions == [29, 78, 83, 91]


def test_fewer_windows_are_a_subset(text: Path) -> None:
    assert set(decoded(calibrate(text, windows=5).input_ids)) < set(decoded(calibrate(text, windows=9).input_ids))


def test_too_few_windows_are_all_used_and_noted(text: Path) -> None:
    result = calibrate(text, windows=101)
    assert "".join(decoded(result.input_ids)) == TEXT
    assert len(result.notes) == 1
    assert "only 100 of the 101 windows of 10 tokens" in result.notes[0]


def test_sources_of_a_mixture_take_turns(text: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.txt"
    other.write_text("Another text, of another kind altogether; twelve words, more or less. " * 40)
    alone = [calibrate(path, windows=windows).input_ids for path, windows in ((text, 3), (other, 2))]
    mixed = calibrate(f"{text} + {other}", windows=5)
    assert torch.equal(mixed.input_ids[::2], alone[0])
    assert torch.equal(mixed.input_ids[1::2], alone[1])
    everything = [calibrate(path, windows=None).input_ids for path in (text, other)]
    assert len(calibrate(f"{text} + {other}", windows=None).input_ids) == sum(map(len, everything))


def test_a_mixture_tells_which_source_is_wrong(text: Path, tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"there is no file .*missing.txt: check the path"):
        calibrate(f"{text} + {tmp_path / 'missing.txt'}")
    with pytest.raises(CorpusError, match=r"1 windows cannot come from 2 sources: use more windows \(--windows\)"):
        calibrate(f"{text} + python-docs", windows=1)
    np.savez(tmp_path / "short.npz", input_ids=np.ones((4, 8), dtype=np.int64))
    with pytest.raises(CorpusError, match=r"short.npz have 8 tokens, those of the other sources 10: set --length 8"):
        calibrate(f"{text} + {tmp_path / 'short.npz'}", windows=4)


def test_three_words_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("just three words")
    for prepare in (calibrate, evaluate):
        with pytest.raises(CorpusError, match=r"has 16 tokens, but one window needs 64: give a longer text"):
            prepare(path, length=64)


def test_long_text_is_tokenized_in_silence(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = pico_tokenizer()
    tokenizer.model_max_length = 8
    path = tmp_path / "a.txt"
    path.write_text(TEXT)
    transformers_logger = logging.getLogger("transformers")
    transformers_logger.addHandler(caplog.handler)
    try:
        assert len(calibrate(path, tokenizer=tokenizer).input_ids) == 4
    finally:
        transformers_logger.removeHandler(caplog.handler)
    assert not caplog.records
    assert len(tokenizer("ab" * 10)["input_ids"]) == 20  # and is still there for the user's own calls


def test_tokenizer_beyond_the_vocabulary_is_refused(text: Path) -> None:
    with pytest.raises(CorpusError, match="but the model knows 5 ids"):
        calibrate(text, vocab_size=5)


def test_special_tokens_are_not_added(text: Path) -> None:
    tokenizer = pico_tokenizer()
    tokenizer.add_bos_token = True
    assert calibrate(text, tokenizer=tokenizer, windows=100).input_ids.max() < 256


def test_python_docs_work_offline() -> None:
    part, heldout = calibrate("python-docs", length=64), evaluate("python-docs:heldout", length=64)
    assert len(part.input_ids) == 4
    assert len(heldout.input_ids) > 500


@pytest.mark.parametrize("prepare", [calibrate, evaluate])
def test_tokenized_wikitext_is_noted(tmp_path: Path, prepare: Any) -> None:
    path = tmp_path / "wiki.train.tokens"
    path.write_text(" a <unk> b and many more words of a text \n" * 4)
    assert any("<unk>" in note for note in prepare(f"wikitext2:{path}").notes)
    assert not any("<unk>" in note for note in prepare(path).notes)


def test_self_text_is_deterministic() -> None:
    model, events = PICO["llama"](), []
    first = calibrate("self", model=model, progress=events.append)
    again = calibrate("self", model=model)
    assert first.input_ids.shape == (4, 10)
    assert first.fingerprint == again.fingerprint
    assert events[-1].done == events[-1].total
    with pytest.raises(CorpusError, match="give another text"):
        evaluate("self")


# Chat


@pytest.fixture
def chat(tmp_path: Path) -> Path:
    path = tmp_path / "chat.jsonl"
    messages = [{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "Hi."}]
    path.write_text(json.dumps({"messages": messages}) + "\n" + '{"instruction": "Add", "output": "2"}\n')
    return path


def test_chat_goes_through_the_template(chat: Path) -> None:
    result = evaluate(f"chat:{chat}", length=2)
    expected = "<s>user: Hello?</s><s>assistant: Hi.</s><s>user: Add</s><s>assistant: 2"  # and </s>, a partial window
    assert decoded(result.input_ids.reshape(1, -1)) == [expected]
    assert (result.input_ids == TOKENIZER.bos_token_id).sum() == 4


def test_chat_needs_a_template(chat: Path) -> None:
    tokenizer = pico_tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(CorpusError, match="no chat template"):
        calibrate(f"chat:{chat}", tokenizer=tokenizer)


# Evaluation


def test_evaluation_takes_consecutive_windows(text: Path) -> None:
    text.write_text(TEXT + "rest")
    result = evaluate(text, windows=7)
    assert "".join(decoded(result.input_ids)) == TEXT[:70]
    assert result.input_ids.dtype == torch.int64
    assert result.tokens_total == 1004
    assert not result.bos
    assert result.notes == ()
    assert "".join(decoded(evaluate(text).input_ids)) == TEXT  # the last partial window is dropped


def test_evaluation_with_bos(text: Path) -> None:
    result = evaluate(text, windows=7, bos=True)
    assert result.bos
    assert result.input_ids.shape == (7, 10)
    assert result.input_ids[:, 0].tolist() == [TOKENIZER.bos_token_id] * 7
    assert "".join(decoded(result.input_ids[:, 1:])) == TEXT[:63]
    assert result.tokens_total == 1000


def test_bos_that_does_not_exist_is_refused(text: Path) -> None:
    tokenizer = pico_tokenizer()
    tokenizer.bos_token = None
    with pytest.raises(CorpusError, match="beginning-of-sequence"):
        evaluate(text, tokenizer=tokenizer, bos=True)


def test_bytes_per_token_counts_utf8(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("äö€" * 10, encoding="utf-8")
    assert evaluate(path).bytes_per_token == 1.0  # a token of the pico tokenizer is a byte
    path.write_text("<s>abc" * 10)
    assert evaluate(path).bytes_per_token == 1.5


def test_too_few_evaluation_windows_are_noted(text: Path) -> None:
    assert "only 100 of the 200 windows" in evaluate(text, windows=200).notes[0]


# Files of token windows

IDS = np.arange(60).reshape(6, 10)


def window_file(path: Path, array: Any = IDS, name: str = "input_ids") -> Path:
    if path.suffix == ".npz":
        np.savez(path, **{name: array})
    else:
        save_file({name: torch.from_numpy(array)}, path)
    return path


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint16])
@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_token_windows_are_used_as_they_are(tmp_path: Path, suffix: str, dtype: Any) -> None:
    path = window_file(tmp_path / f"a{suffix}", IDS.astype(dtype))
    expected = torch.from_numpy(IDS)
    result = calibrate(path, windows=6)
    assert torch.equal(result.input_ids, expected)
    assert result.notes == ()
    assert result.fingerprint == fingerprint_ids(expected)
    assert torch.equal(calibrate(path, windows=2).input_ids, expected[:2])

    text = evaluate(path, bos=True)
    assert torch.equal(text.input_ids, expected)
    assert (text.bytes_per_token, text.bos, text.tokens_total) == (None, False, 60)


def test_suffix_of_token_windows_does_not_matter_with_a_prefix(tmp_path: Path) -> None:
    for suffix in (".npz", ".safetensors"):
        path = window_file(tmp_path / f"a{suffix}").rename(tmp_path / f"{suffix[1:]}.bin")
        assert torch.equal(calibrate(f"windows:{path}", windows=6).input_ids, torch.from_numpy(IDS))


def test_more_token_windows_than_there_are_is_noted(tmp_path: Path) -> None:
    result = calibrate(window_file(tmp_path / "a.npz"), windows=7)
    assert len(result.input_ids) == 6
    assert "only 6 of the 7 windows" in result.notes[0]


def test_shorter_token_windows_are_noted(tmp_path: Path) -> None:
    result = calibrate(window_file(tmp_path / "a.npz"), length=20)
    assert result.input_ids.shape == (4, 10)
    assert "have 10 tokens, not 20" in result.notes[0]


def test_longer_token_windows_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="have 10 tokens, more than 8: set --length 10"):
        calibrate(window_file(tmp_path / "a.npz"), length=8)


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
@pytest.mark.parametrize(
    ("array", "says"),
    [
        (IDS + VOCAB - 59, f"has token id {VOCAB}, but the model knows ids 0 to {VOCAB - 1}"),
        (IDS - 1, "has token id -1"),
        (IDS.astype(np.float32), "is float32 of shape [6, 10]"),
        (IDS.reshape(-1), "of shape [60]"),
        (IDS[:0], "of shape [0, 10]"),
    ],
)
def test_bad_token_windows(tmp_path: Path, array: Any, says: str, suffix: str) -> None:
    with pytest.raises(CorpusError) as caught:
        calibrate(window_file(tmp_path / f"a{suffix}", array))
    assert says in str(caught.value)


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_token_windows_without_input_ids(tmp_path: Path, suffix: str) -> None:
    path = window_file(tmp_path / f"a{suffix}", name="tokens")
    with pytest.raises(CorpusError, match="has no array input_ids, only tokens"):
        calibrate(path)


@pytest.mark.parametrize("content", [b"", b"three words here", b"PK\x03\x04 not a zip at all"])
@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_damaged_token_windows(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content)
    with pytest.raises(CorpusError, match="is not a readable"):
        calibrate(path)


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_cut_off_token_windows(tmp_path: Path, suffix: str) -> None:
    path = window_file(tmp_path / f"a{suffix}")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CorpusError, match="is not a readable"):
        calibrate(path)


def test_pickles_and_half_precision_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", input_ids=np.array([[1, "a"]], dtype=object))
    save_file({"input_ids": torch.ones(2, 10, dtype=torch.bfloat16)}, tmp_path / "a.safetensors")
    for name in ("a.npz", "a.safetensors"):
        with pytest.raises(CorpusError):
            calibrate(tmp_path / name)


# Fingerprints and real data


def test_fingerprint_is_of_shape_and_ids() -> None:
    ids = torch.arange(60)
    assert fingerprint_ids(ids.view(6, 10)) == fingerprint_ids(ids.view(6, 10).clone())
    assert fingerprint_ids(ids.view(6, 10)) == fingerprint_ids(ids.view(10, 6).T.reshape(60).sort().values.view(6, 10))
    assert fingerprint_ids(ids.view(6, 10)) != fingerprint_ids(ids.view(10, 6))
    assert fingerprint_ids(ids.view(6, 10)) != fingerprint_ids(ids.view(6, 10) + 1)


@needs_data
def test_real_token_windows() -> None:
    path = DATA / "wikitext2" / "smollm2_calibration_windows.npz"
    result = calibrate(path, windows=256, length=2048, vocab_size=49152)
    assert result.input_ids.shape == (64, 2048)
    assert "only 64 of the 256 windows" in result.notes[0]


@needs_data
def test_real_text_by_bytes() -> None:
    spec = f"wikitext2:{DATA / 'wikitext2' / 'wiki.test.raw'}"
    result = evaluate(spec, windows=2, length=2048)
    assert result.tokens_total == 1_290_590
    start = read_text(parse_source(spec), "test").encode()[: 2 * 2048]
    assert TOKENIZER.decode(result.input_ids.flatten()).encode() == start


def test_models_that_need_a_first_token_are_calibrated_with_it(text: Path) -> None:
    windows, plain = calibrate(text, bos=True), calibrate(text, length=9)
    assert windows.bos
    assert not plain.bos
    assert (windows.input_ids[:, 0] == TOKENIZER.bos_token_id).all()
    assert torch.equal(windows.input_ids[:, 1:], plain.input_ids)
