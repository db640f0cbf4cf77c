"""``basis-sharing compare``: tables, a sentence, an exit code; mistakes cost no time and leave nothing behind."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from basis_sharing.cli.main import main
from basis_sharing.results.comparison import Comparison
from pico import PICO, pico_tokenizer, save_pico


class Space:
    """Two models, a text, prompts, and a runner."""

    def __init__(self, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.root, self.capsys = root, capsys
        self.a = save_pico("llama", root / "a")
        model = PICO["llama"]()
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for layer in model.model.layers:
                weight = layer.mlp.down_proj.weight
                weight.add_(torch.randn(weight.shape, generator=generator) * 0.3 * weight.std())
        self.b = root / "b"
        model.save_pretrained(self.b)
        pico_tokenizer().save_pretrained(self.b)
        self.text = root / "text.txt"
        self.text.write_text("The quick brown fox jumps over the lazy dog. " * 60)
        self.out = root / "results.json"
        capsys.readouterr()

    def raw(self, *arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stop:
            main([str(argument) for argument in arguments])
        captured = self.capsys.readouterr()
        return int(stop.value.code or 0), captured.out, captured.err

    def run(self, *arguments: object) -> tuple[int, str, str]:
        """Compare with good defaults; return the exit code, and what was printed where."""
        settings = ("--text", self.text, "--length=64", "--evaluation-windows=4", "--new-tokens=4")
        return self.raw("compare", self.a, self.b, *settings, *arguments)

    def refused(self, *arguments: object) -> str:
        before = sorted((path, path.stat().st_mtime_ns) for path in self.root.rglob("*"))
        code, printed, errors = self.raw("compare", *arguments)
        assert code == 2, printed + errors
        assert printed == ""
        assert "Traceback" not in errors
        (error,) = [line for line in errors.splitlines() if line.startswith("error: ")]
        assert sorted((path, path.stat().st_mtime_ns) for path in self.root.rglob("*")) == before
        return error.removeprefix("error: ")


@pytest.fixture
def space(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Space:
    return Space(tmp_path, capsys)


def words(text: str) -> str:
    return " ".join(text.split())


def test_tables_and_a_sentence(space: Space) -> None:
    code, printed, errors = space.run()
    assert code == 0
    for shown in (
        "KL divergence (A || B)",
        "same most probable token",
        "Where they disagree most",
        "What they write (greedily)",
        "The capital of France is",
        "No limit was set: the perplexity of B is",
    ):
        assert shown in words(printed)
    assert "comparing" in errors


def test_limits_decide_the_exit_code(space: Space) -> None:
    code, printed, _ = space.run("--max-kl=5", "--max-perplexity-increase=500%", "--min-agreement=1%")
    assert code == 0
    assert "PASS: mean KL divergence" in words(printed)
    code, printed, errors = space.run("--max-kl=0", "--min-agreement=0.01", "-o", space.out)
    assert code == 1
    assert "FAIL: mean KL divergence" in words(printed)
    assert "error" not in errors
    assert Comparison.read(space.out).verdict.held is False  # a broken limit is a result, and written as such


def test_what_is_printed_as_json_is_what_is_written(space: Space) -> None:
    prompts = space.root / "prompts.txt"
    prompts.write_text("Once upon\na time\n")
    code, printed, _ = space.run("--json", "-o", space.out, "--prompts", prompts, "--max-kl=0")
    assert code == 1
    assert json.loads(printed) == json.loads(space.out.read_text())
    result = Comparison.read(space.out)
    assert result.kind == "comparison"
    assert [generation.prompt for generation in result.generations] == ["Once upon", "a time"]
    assert result.second.perplexity.windows == 4
    assert str(space.out) in space.refused(space.a, space.b, "-o", space.out)
    code, _, _ = space.run("--overwrite", "-o", space.out)
    assert code == 0


def test_the_drift_monitor(space: Space) -> None:
    code, _, _ = space.run("-o", space.out, "--max-perplexity-increase=500%", "--min-agreement=1%")
    assert code == 0
    code, printed, _ = space.raw("compare", "--baseline", space.out, space.b, "--max-drift=0%")
    assert code == 0
    assert "B then and now: perplexity" in printed
    assert "PASS: perplexity drift since the baseline 0.00 % is within the limit of 0 %" in words(printed)
    code, printed, _ = space.raw("compare", "--baseline", space.out, space.b)
    assert code == 0
    assert "PASS: perplexity increase" in words(printed)
    assert "the perplexity of B is 1.0000 x that in" in words(printed)
    code, printed, _ = space.raw("compare", "--baseline", space.out, space.a, space.b, "--min-agreement=100%")
    assert code == 1
    assert "FAIL: agreement" in words(printed)

    worse = PICO["llama"]()
    worse.model.norm.weight.data.mul_(-2)
    worse.save_pretrained(space.b)
    again = space.root / "again.json"
    code, printed, _ = space.raw("compare", "--baseline", space.out, space.b, "--max-drift=1%", "-o", again)
    assert code == 1
    assert "FAIL: perplexity drift since the baseline" in words(printed)
    drift = Comparison.read(again).drift
    assert drift is not None
    assert drift.baseline == str(space.out)


def test_baselines_that_cannot_be_used(space: Space) -> None:
    assert space.run("-o", space.out)[0] == 0
    other = space.root / "other.txt"
    other.write_text("Another text altogether, which nobody has measured. " * 60)
    told = space.refused("--baseline", space.out, space.b, "--text", other)
    assert told == (
        f"{other} does not give the tokens that {space.out} was measured on: the text or the model's tokenizer is "
        "another one; give the text of then with --text, or make a new baseline."
    )
    for option in ("--evaluation-windows=3", "--length=64", "--dtype=float32", "--new-tokens=3", f"--prompts={other}"):
        name = option.split("=")[0]
        assert space.refused("--baseline", space.out, space.b, option) == (
            f"{name} has no meaning with --baseline, which says what is measured: leave one out."
        )
    assert space.refused("--baseline", space.out, space.b, "--max-kl=1") == (
        "--max-kl cannot be judged: the first model was not given: give both models beside the baseline."
    )
    assert "cannot be read" in space.refused("--baseline", space.root / "none.json", space.b)
    stored = json.loads(space.out.read_text())
    space.out.write_text(json.dumps({**stored, "schema_version": 2}))
    assert space.refused("--baseline", space.out, space.b) == (
        f"{space.out} has schema version 2, and this version of basis-sharing reads up to 1: update basis-sharing."
    )
    space.out.write_text(json.dumps({**stored, "kind": "benchmark"}))
    assert "results of a benchmark, not of a comparison" in space.refused("--baseline", space.out, space.b)


def test_different_vocabularies(space: Space) -> None:
    tokenizer = pico_tokenizer()
    tokenizer.add_tokens(["zebra"])
    tokenizer.save_pretrained(space.b)
    code, printed, _ = space.run()
    assert code == 0
    assert "the two models have different vocabularies (259 and 260 tokens)" in words(printed)
    assert "bits per byte" in printed
    assert "KL divergence (A" not in printed
    settings = ("--text", space.text, "--length=64", "--max-kl=1")
    assert space.refused(space.a, space.b, *settings) == (
        "--max-kl cannot be judged: the two models have different vocabularies (259 and 260 tokens)."
    )


def test_a_model_that_only_ends_the_text(space: Space) -> None:
    mute = PICO["llama"]()
    mute.model.norm.weight.data.zero_()
    mute.generation_config.eos_token_id = 0
    mute.save_pretrained(space.b)
    code, printed, _ = space.run()
    assert code == 0
    assert "note: B generates only end-of-text after 3 of 3 prompts." in words(printed)
    assert "(only end-of-text)" in printed


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("one\n\nthree\n", "line 2 of the prompts {path} is empty: write a prompt there, or remove it."),
        ("", "the prompts {path} are empty: write one prompt a line."),
        (None, "the prompts {path} cannot be read (No such file or directory): check the path."),
    ],
)
def test_bad_prompts(space: Space, content: str | None, sentence: str) -> None:
    path = space.root / "prompts.txt"
    if content is not None:
        path.write_text(content)
    assert space.refused(space.a, space.b, "--prompts", path) == sentence.format(path=path)


def test_a_prompt_that_is_too_long(space: Space) -> None:
    path = space.root / "prompts.txt"
    path.write_text("x" * 300)
    told = space.refused(space.a, space.b, "--text", space.text, "--prompts", path)
    assert told == (
        "prompt 1 has 300 tokens, and with 40 new ones that is more than the 256 this model can read: shorten it, or "
        "ask for fewer with --new-tokens."
    )


@pytest.mark.parametrize(
    ("argument", "sentence"),
    [
        ("--evaluation-windows=0", "--evaluation-windows 0 is too small: at least 1 is needed."),
        (
            "--windows=3",
            "--windows is called --evaluation-windows here: --windows are the windows a model is calibrated on.",
        ),
        ("--device=tpu", "unknown device 'tpu': choose from auto, cpu, cuda, mps."),
        ("--length=1", "--length 1 is too small: at least 2 is needed."),
        ("--new-tokens=0", "--new-tokens 0 is too small: at least 1 is needed."),
        ("--disagreements=-1", "--disagreements -1 is too small: at least 0 is needed."),
        ("--length=300", "--length 300 is more than the 256 tokens this model can read at once."),
        ("--dtype=int8", "unknown dtype 'int8': choose from auto, float32, bfloat16, float16."),
        ("--text=nowhere.txt", "there is no file nowhere.txt: check the path."),
        ("--max-kl=-1", "--max-kl -1.0 is out of range: input should be greater than or equal to 0."),
        ("--min-agreement=90", "--min-agreement 90 is out of range: input should be less than or equal to 1."),
        (
            "--max-perplexity-increase=much",
            "--max-perplexity-increase much: 'much' is neither a fraction nor a percentage: write e.g. 0.05 or 5%.",
        ),
        (
            "--max-drift=1%",
            "--max-drift cannot be judged: there is no baseline to drift from: give one with --baseline FILE.",
        ),
    ],
)
def test_bad_settings(space: Space, argument: str, sentence: str) -> None:
    assert space.refused(space.a, space.b, argument) == sentence


def test_bad_models(space: Space) -> None:
    needed = "two models are needed, and {} given: basis-sharing compare ORIGINAL COMPRESSED."
    assert space.refused(space.a) == needed.format(1)
    assert space.refused(space.a, space.b, space.a) == needed.format(3)
    assert "does not exist" in space.refused(space.a, space.root / "nowhere")
    (space.b / "model.safetensors").write_bytes(b"\xff" * 100)
    assert "model.safetensors" in space.refused(space.a, space.b)


def test_files_that_cannot_be_written_fail_before_the_work(space: Space) -> None:
    assert "is a folder" in space.refused(space.a, space.b, "-o", space.root)
    assert "cannot write to" in space.refused(space.a, space.b, "-o", space.text / "below.json")


def test_help_stays_light() -> None:
    code = (
        "import sys\nfrom basis_sharing.cli.main import main\n"
        "try:\n    main(['compare', '--help'])\nexcept SystemExit:\n    pass\nprint('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("False")
