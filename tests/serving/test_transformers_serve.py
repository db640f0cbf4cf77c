"""A compressed folder behind ``transformers serve``, asked by OpenAI's client: the answers of ``generate``."""

import importlib.util
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

import basis_sharing
from forks import fresh
from pico import PICO, TEXT, VOCAB, pico_tokenizer

MISSING = [name for name in ("fastapi", "uvicorn", "openai") if importlib.util.find_spec(name) is None]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"needs transformers[serving]: no {', '.join(MISSING)}")

PROMPTS = ["The quick brown fox", "and so does", "lazy"]
TOKENS = 12
COMMAND = [f"{sysconfig.get_path('scripts')}/transformers", "serve"]
WAYS = {
    "remote code": [*COMMAND, "--trust-remote-code"],
    "package": [
        sys.executable,
        "-c",
        "import basis_sharing; from transformers.cli.transformers import main; main()",
        "serve",
    ],
}
SECONDS = 180


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A compressed pico LLaMA that writes ASCII and never goes in circles, so that its texts tell answers apart."""
    root = tmp_path_factory.mktemp("served")
    (root / "text.txt").write_text(TEXT)
    model, tokenizer = PICO["llama"](), pico_tokenizer()
    written = {tokenizer.convert_tokens_to_ids(chr(code)) for code in range(ord("!"), ord("~") + 1)}
    model.generation_config.suppress_tokens = sorted(set(range(VOCAB)) - written)
    model.generation_config.no_repeat_ngram_size = 2
    settings: dict[str, Any] = {"method": "basis-sharing", "form": "pivoted", "windows": 4, "length": 64}
    basis_sharing.compress(
        model, 0.3, tokenizer=tokenizer, calibration=str(root / "text.txt"), output=root / "small", **settings
    )
    return root / "small"


@contextmanager
def served(command: list[str], folder: Path, log: Path) -> Iterator[Any]:
    """Serve a folder on a free port until the block ends; give a client of that server."""
    from openai import OpenAI

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = [*command, str(folder), "--device", "cpu", "--host", "127.0.0.1", "--port", str(port)]
    with log.open("wb") as output:
        process = subprocess.Popen(arguments, stdout=output, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + SECONDS
        while not listens(port):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, f"not ready after {SECONDS} s:\n{log.read_text()}"
            time.sleep(0.2)
        with OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", timeout=SECONDS, max_retries=0) as client:
            yield client
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(10)
        process.kill()
        process.wait()


def listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def chat(prompt: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}]


def written_by_generate(folder: Path) -> list[tuple[str, str]]:
    """Return what follows every prompt as it is, and as a message of a chat."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()

    def answer(inputs: Any) -> str:
        output = model.generate(**inputs, max_new_tokens=TOKENS, do_sample=False)
        text: str = tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        return text

    as_tensors: dict[str, Any] = {"return_tensors": "pt", "return_dict": True}
    return [
        (
            answer(tokenizer(prompt, return_tensors="pt")),
            answer(tokenizer.apply_chat_template(chat(prompt), add_generation_prompt=True, **as_tensors)),
        )
        for prompt in PROMPTS
    ]


@pytest.mark.parametrize("way", list(WAYS))
def test_it_answers_what_generate_writes(way: str, folder: Path, tmp_path: Path) -> None:
    expected = written_by_generate(folder)
    assert all(len(text) == TOKENS for answers in expected for text in answers)
    greedy: dict[str, Any] = {"model": str(folder), "max_tokens": TOKENS, "temperature": 0}
    with served(WAYS[way], folder, tmp_path / "log.txt") as client:
        found = [
            (
                client.completions.create(prompt=prompt, **greedy).choices[0].text,
                client.chat.completions.create(messages=chat(prompt), **greedy).choices[0].message.content,
            )
            for prompt in PROMPTS
        ]
        parts = list(client.chat.completions.create(messages=chat(PROMPTS[0]), stream=True, **greedy))
    assert found == expected
    assert "".join(part.choices[0].delta.content or "" for part in parts if part.choices) == expected[0][1]


def test_without_package_and_remote_code_nothing_is_served(folder: Path, tmp_path: Path) -> None:
    program = "from transformers.cli.transformers import main; main()"
    done = fresh(program, "serve", folder, "--device", "cpu", cwd=tmp_path).wait(SECONDS)
    assert done.returncode != 0
    assert "ignore_mismatched_sizes" in done.stderr
