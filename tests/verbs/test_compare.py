"""Two models side by side, and one of them again."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

import basis_sharing
from basis_sharing.errors import NumericalError, RecipeError, ResultError
from basis_sharing.results.comparison import Comparison, Limits
from basis_sharing.run.progress import Progress
from pico import PICO, pico_tokenizer

TEXT = "Two models are compared on one text; where they disagree most is worth more than a mean. " * 12
PROMPTS = ("Once upon a time", "x")


@pytest.fixture
def text(tmp_path: Path) -> str:
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return str(path)


def perturbed(scale: float = 0.1) -> PreTrainedModel:
    model = PICO["llama"]()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Linear):
                noise = torch.randn(module.weight.shape, generator=generator)
                module.weight.add_(noise * scale * module.weight.std())
    return model


def compare(a: PreTrainedModel, b: PreTrainedModel, text: str, **settings: object) -> Comparison:
    options: dict[str, object] = {"length": 64, "prompts": PROMPTS, "new_tokens": 6, "tokenizer": pico_tokenizer()}
    return basis_sharing.compare(a, b, text=text, **{**options, **settings})


def again(*models: PreTrainedModel, baseline: Comparison, **settings: object) -> Comparison:
    return basis_sharing.compare(*models, baseline=baseline, tokenizer=pico_tokenizer(), **settings)


def test_a_model_agrees_with_itself(text: str) -> None:
    found = compare(PICO["llama"](), PICO["llama"](), text)
    assert found.agreement is not None
    assert found.difference is not None
    assert found.agreement.mean_kl == found.agreement.percentile_99_kl == 0
    assert found.agreement.top1 == 1
    assert found.agreement.disagreements == ()
    assert found.difference.quotient == 1
    assert found.difference.nats_interval is not None
    assert found.difference.nats_interval.low == found.difference.nats_interval.high == 0
    assert all(generation.first == generation.second for generation in found.generations)
    alone = basis_sharing.evaluate(PICO["llama"](), text, tokenizer=pico_tokenizer(), length=64)
    assert (found.first.perplexity,) == alone.perplexities
    assert not found.notes
    assert found.verdict.held is None


def test_a_perturbed_model_is_found_out(text: str) -> None:
    a, b = PICO["llama"](), perturbed(0.3)
    events: list[Progress] = []
    found = compare(a, b, text, disagreements=3, progress=events.append)
    assert found.agreement is not None
    assert found.difference is not None
    assert 0.01 < found.agreement.mean_kl < found.agreement.percentile_99_kl
    assert 0 < found.agreement.top1 < 1
    assert found.difference.quotient == pytest.approx(
        found.second.perplexity.perplexity / found.first.perplexity.perplexity
    )
    assert found.difference.quotient_interval is not None
    assert found.difference.quotient_interval.low < found.difference.quotient < found.difference.quotient_interval.high
    assert [place.kl for place in found.agreement.disagreements] == sorted(
        (place.kl for place in found.agreement.disagreements), reverse=True
    )
    assert len(found.agreement.disagreements) == 3
    windows = found.first.perplexity.windows
    assert [event.done for event in events if event.stage == "comparing"] == list(range(1, windows + 1))

    # KL divergence by the definition, all windows in one batch and in double precision.
    ids = torch.tensor(pico_tokenizer()(TEXT, add_special_tokens=False)["input_ids"])[: windows * 64].view(-1, 64)
    with torch.no_grad():
        p, q = (model.double()(input_ids=ids).logits[:, :-1].softmax(-1) for model in (a, b))
    kl = (p * (p / q).log()).sum(-1)
    assert found.agreement.mean_kl == pytest.approx(kl.mean().item(), rel=1e-4)
    assert found.agreement.percentile_99_kl == pytest.approx(np.quantile(kl.numpy(), 0.99), rel=1e-4)
    assert found.agreement.window_kl == pytest.approx(kl.mean(1).tolist(), rel=1e-4)
    assert found.agreement.top1 == pytest.approx((p.argmax(-1) == q.argmax(-1)).double().mean().item())
    worst = found.agreement.disagreements[0]
    assert worst.kl == pytest.approx(kl.max().item(), rel=1e-4)
    assert worst.window * 63 + worst.position - 1 == int(kl.argmax())


def test_limits_are_judged(text: str) -> None:
    held = compare(PICO["llama"](), perturbed(), text, limits=Limits(max_kl=10.0, min_agreement=0.01))
    assert held.verdict.held is True
    broken = compare(PICO["llama"](), perturbed(), text, limits=Limits(max_kl=1e-6))
    assert broken.verdict.held is False
    assert broken.verdict.sentence.startswith("FAIL: mean KL divergence")


def test_one_window_has_no_interval(text: str) -> None:
    found = compare(PICO["llama"](), perturbed(), text, evaluation_windows=1, limits=Limits(max_kl=10.0))
    assert found.difference is not None
    assert found.difference.quotient_interval is None
    assert "(a single window: no confidence interval)" in found.verdict.sentence


def test_different_vocabularies_leave_bits_per_byte(text: str, tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    for folder in (a, b):
        PICO["llama"]().save_pretrained(folder)
    pico_tokenizer().save_pretrained(a)
    larger = pico_tokenizer()
    larger.add_tokens(["zebra"])
    larger.save_pretrained(b)
    settings = {"text": text, "length": 64, "prompts": PROMPTS, "new_tokens": 6}
    found = basis_sharing.compare(a, b, **settings)
    assert found.difference is None
    assert found.agreement is None
    assert found.first.perplexity.bits_per_byte is not None
    assert len(found.generations) == 2
    assert found.verdict.sentence.startswith("No limit was set: B needs ")
    assert found.notes[0].startswith(
        "the two models have different vocabularies (259 and 260 tokens): bits per byte and generations are compared;"
    )
    for name in ("max_kl", "min_agreement", "max_perplexity_increase"):
        flag = name.replace("_", "-")
        with pytest.raises(RecipeError, match=f"^--{flag} cannot be judged: the two models have different vocabul"):
            basis_sharing.compare(a, b, limits=Limits.create(**{name: 0.5}), **settings)
    later = basis_sharing.compare(b, baseline=found, limits=Limits(max_drift=0.01))
    assert later.verdict.held is True
    assert later.difference is None
    with pytest.raises(RecipeError, match="the baseline holds no comparable perplexities"):
        basis_sharing.compare(b, baseline=found, limits=Limits(max_perplexity_increase=0.01))


def test_a_padded_vocabulary_leaves_the_perplexity(text: str) -> None:
    padded = PICO["llama"]()
    padded.resize_token_embeddings(264)
    found = compare(PICO["llama"](), padded, text)
    assert found.difference is not None
    assert found.agreement is None
    assert found.notes == ("the two models predict 260 and 264 tokens: divergence and agreement are left out.",)


def test_families_with_and_without_bos_read_other_windows(text: str) -> None:
    found = compare(PICO["llama"](), PICO["gemma3"](), text)
    assert found.difference is None
    assert "turn the text into different tokens" in found.notes[0]


def test_the_shorter_limit_counts(tmp_path: Path) -> None:
    path = tmp_path / "long.txt"
    path.write_text(TEXT * 4)
    short = PICO["llama"]()
    short.config.max_position_embeddings = 100
    found = compare(PICO["llama"](), short, str(path), length=None)
    assert found.first.perplexity.length == found.second.perplexity.length == 100
    with pytest.raises(RecipeError, match="--length 101 is more than the 100 tokens"):
        compare(PICO["llama"](), short, str(path), length=101)


def test_token_windows_need_no_text(tmp_path: Path) -> None:
    np.savez(tmp_path / "w.npz", input_ids=np.arange(128).reshape(2, 64))
    found = compare(PICO["llama"](), perturbed(), str(tmp_path / "w.npz"))
    assert found.agreement is not None
    assert found.first.perplexity.bits_per_byte is None


def test_a_model_that_only_ends_the_text_is_named(text: str) -> None:
    mute = PICO["llama"]()
    mute.model.norm.weight.data.zero_()
    mute.generation_config.eos_token_id = 0
    found = compare(PICO["llama"](), mute, text)
    assert found.notes == ("B generates only end-of-text after 2 of 2 prompts.",)
    assert found.generations[0].second.tokens == 0
    assert found.generations[0].first.tokens == 6


def test_nan_names_the_model(text: str) -> None:
    broken = PICO["gpt2"]()
    broken.transformer.ln_f.weight.data.fill_(float("nan"))
    with pytest.raises(NumericalError, match=r"^GPT2LMHeadModel: the model computes NaN or infinity on window 1"):
        compare(PICO["llama"](), broken, text)


def test_a_model_in_memory_needs_its_tokenizer(text: str) -> None:
    with pytest.raises(RecipeError, match="pass tokenizer="):
        compare(PICO["llama"](), PICO["llama"](), text, tokenizer=None)


def test_drift_needs_a_baseline(text: str) -> None:
    with pytest.raises(RecipeError, match=r"^--max-drift cannot be judged: there is no baseline"):
        compare(PICO["llama"](), PICO["llama"](), text, limits=Limits(max_drift=0.1))


def test_what_is_written_is_read_back(text: str, tmp_path: Path) -> None:
    found = compare(PICO["llama"](), perturbed(), text, limits=Limits(max_kl=1.0))
    found.write(tmp_path / "r.json")
    assert Comparison.read(tmp_path / "r.json") == found
    damaged = (tmp_path / "r.json").read_text().replace('"windows": ', '"windows": 1')
    (tmp_path / "r.json").write_text(damaged)
    with pytest.raises(ResultError, match=r"is damaged \(first: .*one loss per window is needed"):
        Comparison.read(tmp_path / "r.json")


def test_a_model_that_stayed_the_same_has_not_drifted(text: str) -> None:
    limits = Limits(max_perplexity_increase=10.0, min_agreement=0.1)
    baseline = compare(PICO["llama"](), perturbed(), text, limits=limits, evaluation_windows=3)
    found = again(perturbed(), baseline=baseline)
    assert found.first_is_stored
    assert found.first == baseline.first
    assert found.second == baseline.second
    assert found.difference == baseline.difference
    assert found.drift is not None
    assert found.drift.difference.quotient == 1
    assert found.drift.changed_generations == 0
    assert found.generations == baseline.generations
    assert found.limits == Limits(max_perplexity_increase=10.0)
    assert found.notes == (
        "the limits of the baseline on divergence and agreement need both models and were not judged.",
    )
    assert found.verdict.held is True
    assert (
        again(perturbed(), baseline=found, limits=Limits(max_drift=0.0)).verdict.held is True
    )  # and is a baseline itself


def test_a_model_that_changed_has_drifted(text: str) -> None:
    baseline = compare(PICO["llama"](), PICO["llama"](), text, limits=Limits(max_perplexity_increase=0.05))
    changed = PICO["llama"]()
    changed.model.norm.weight.data.mul_(-2)
    found = again(changed, baseline=baseline)
    assert found.drift is not None
    assert found.drift.difference.quotient == pytest.approx(
        math.exp(found.second.perplexity.nats_per_token - baseline.second.perplexity.nats_per_token)
    )
    assert found.drift.difference.quotient > 1.1
    assert found.drift.changed_generations == 2
    assert found.verdict.held is False
    assert found.verdict.sentence.startswith("FAIL: perplexity increase ")
    strict = again(changed, baseline=baseline, limits=Limits(max_drift=0.05))
    assert strict.verdict.held is False
    assert strict.verdict.sentence.startswith("FAIL: perplexity drift since the baseline ")


def test_with_the_original_everything_is_measured_again(text: str) -> None:
    baseline = compare(PICO["llama"](), perturbed(), text, limits=Limits(min_agreement=0.1))
    found = again(PICO["llama"](), perturbed(), baseline=baseline)
    assert not found.first_is_stored
    assert found.agreement == baseline.agreement
    assert found.drift is not None
    assert found.drift.difference.quotient == 1
    assert found.verdict.held is True
    assert found.limits == baseline.limits


def test_a_baseline_of_another_text_is_refused(text: str, tmp_path: Path) -> None:
    baseline = compare(PICO["llama"](), perturbed(), text)
    other = tmp_path / "other.txt"
    other.write_text(TEXT.upper())
    for models in ([perturbed()], [PICO["llama"](), perturbed()]):
        with pytest.raises(ResultError, match=r"other.txt does not give the tokens that the baseline was measured on"):
            again(*models, baseline=baseline, text=str(other))
    moved = tmp_path / "moved.txt"
    moved.write_text(TEXT + "What comes after the windows of the baseline does not matter.")
    assert again(perturbed(), baseline=baseline, text=str(moved)).drift is not None


def test_limits_that_need_the_original_are_refused_without_it(text: str) -> None:
    baseline = compare(PICO["llama"](), perturbed(), text)
    with pytest.raises(RecipeError, match=r"^--max-kl cannot be judged: the first model was not given: give both"):
        again(perturbed(), baseline=baseline, limits=Limits(max_kl=1.0))


def test_other_conditions_are_told(text: str) -> None:
    baseline = compare(PICO["llama"](), perturbed(), text)
    older = baseline.model_copy(update={"versions": {**baseline.versions, "torch": "1.0"}})
    found = again(perturbed().bfloat16(), baseline=older)
    assert "B ran in float32 for the baseline, and in bfloat16 now." in found.notes
    assert any(note.startswith("the baseline was measured with torch 1.0, this with ") for note in found.notes)


def test_a_baseline_in_a_file_is_named(text: str, tmp_path: Path) -> None:
    baseline = tmp_path / "r.json"
    compare(PICO["llama"](), perturbed(), text).write(baseline)
    found = basis_sharing.compare(perturbed(), baseline=baseline, tokenizer=pico_tokenizer())
    assert found.drift is not None
    assert found.drift.baseline == str(baseline)
    with pytest.raises(RecipeError, match="--length has no meaning with --baseline"):
        basis_sharing.compare(perturbed(), baseline=baseline, tokenizer=pico_tokenizer(), length=64)


def test_models_are_counted(text: str) -> None:
    with pytest.raises(RecipeError, match="two models are needed, and 1 given"):
        basis_sharing.compare(PICO["llama"](), text=text, tokenizer=pico_tokenizer())


def test_prompts_may_come_from_a_file(text: str, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("Once upon\na time\n")
    found = compare(PICO["llama"](), perturbed(), text, prompts=tmp_path / "prompts.txt")
    assert [generation.prompt for generation in found.generations] == ["Once upon", "a time"]
