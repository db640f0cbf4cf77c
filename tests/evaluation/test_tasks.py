"""Zero-shot scores against the harness itself, and perplexity against its log-likelihoods."""

import json
import math
import random
from pathlib import Path
from typing import Any

import lm_eval
import numpy as np
import pytest
import torch
from lm_eval.tasks import TaskManager

import basis_sharing
from basis_sharing.errors import NumericalError, RecipeError
from basis_sharing.evaluation import harness
from basis_sharing.evaluation.score_cache import default_folder
from basis_sharing.evaluation.task_data import write_task
from basis_sharing.evaluation.tasks import PAPER, evaluate_tasks, task_names
from basis_sharing.results.tasks import TaskResults
from basis_sharing.run.progress import Progress
from basis_sharing.verbs.compare import compare
from pico import PICO, pico_tokenizer, save_pico

WORDS = ["river", "stone", "light", "engine", "paper", "winter", "orange", "silver", "garden", "mirror"]


def arc_examples(count: int, seed: int = 0) -> list[dict[str, Any]]:
    generator = random.Random(seed)
    return [
        {
            "question": f"Which of these is number {number}?",
            "choices": {"text": generator.sample(WORDS, 4), "label": list("ABCD")},
            "answerKey": generator.choice("ABCD"),
        }
        for number in range(count)
    ]


def write_lines(path: Path, records: list[dict[str, Any]]) -> None:
    path.write_text("\n".join(map(json.dumps, records)))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    write_lines(folder / "arc_easy.jsonl", arc_examples(30))
    write_lines(folder / "lambada_openai.jsonl", [{"text": f"{' '.join(WORDS[i:])} {WORDS[i]}"} for i in range(8)])
    return folder


def test_scores_are_those_of_the_harness(tmp_path: Path, data: Path) -> None:
    model = save_pico("llama", tmp_path / "model")
    ours = evaluate_tasks(model, ["arc_easy", "lambada_openai"], data=data)
    definitions = tmp_path / "definitions"
    definitions.mkdir()
    for name in ("arc_easy", "lambada_openai"):
        write_task(name, data, definitions, harness.definitions())
    with harness.silenced():
        theirs = lm_eval.simple_evaluate(
            model="hf",
            model_args=f"pretrained={model},dtype=auto",
            tasks=["arc_easy", "lambada_openai"],
            task_manager=TaskManager(include_path=str(definitions), include_defaults=False),
            device="cpu",
            batch_size=8,
            log_samples=True,
        )
    for score in ours.scores:
        assert score.accuracy == theirs["results"][score.task]["acc,none"]
        assert score.accuracy_error == theirs["results"][score.task]["acc_stderr,none"]
        assert score.normalized_accuracy == theirs["results"][score.task].get("acc_norm,none")
        assert score.normalized_accuracy_error == theirs["results"][score.task].get("acc_norm_stderr,none")
        samples = sorted(theirs["samples"][score.task], key=lambda sample: sample["doc_id"])
        assert score.correct == tuple(sample["acc"] == 1 for sample in samples)
    assert 0 < ours.scores[0].accuracy < 1


def test_the_score_is_the_definition(data: Path) -> None:
    model, tokenizer = PICO["llama"](), pico_tokenizer()
    found = evaluate_tasks(model, ["arc_easy"], tokenizer=tokenizer, data=data).scores[0]
    right, right_by_length = [], []
    for example in arc_examples(30):
        likelihoods = []
        for choice in example["choices"]["text"]:
            prompt, answer = (
                tokenizer(text, add_special_tokens=False)["input_ids"]
                for text in (f"Question: {example['question']}\nAnswer:", f" {choice}")
            )
            with torch.no_grad():
                logits = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
            likelihoods.append(sum(logits[i, token].item() for i, token in enumerate(answer)))
        gold = "ABCD".index(example["answerKey"])
        by_length = [value / len(c) for value, c in zip(likelihoods, example["choices"]["text"], strict=True)]
        right.append(max(range(4), key=likelihoods.__getitem__) == gold)
        right_by_length.append(max(range(4), key=by_length.__getitem__) == gold)
    assert found.correct == tuple(right)
    assert found.correct_normalized == tuple(right_by_length)
    assert found.accuracy == pytest.approx(sum(right) / 30)
    share = found.accuracy
    assert found.accuracy_error == pytest.approx(math.sqrt(share * (1 - share) / 29))
    assert (found.examples, found.split, found.version) == (30, "test", "1.0")


def test_a_compressed_folder_scores_what_its_model_scores(tmp_path: Path, data: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog. " * 60)
    model, _ = basis_sharing.compress(
        save_pico("llama", tmp_path / "model"), ratio=0.3, calibration=str(text), length=64, output=tmp_path / "out"
    )
    stored = evaluate_tasks(tmp_path / "out", ["arc_easy"], data=data)
    in_memory = evaluate_tasks(model, ["arc_easy"], tokenizer=pico_tokenizer(), data=data)
    assert stored.scores == in_memory.scores
    assert stored.model_fingerprint is not None
    assert in_memory.model_fingerprint is None
    original = evaluate_tasks(tmp_path / "model", ["arc_easy"], data=data)
    assert original.scores[0].prompt_fingerprint == stored.scores[0].prompt_fingerprint
    assert original.model_fingerprint != stored.model_fingerprint


def test_limit_and_progress(data: Path) -> None:
    events: list[Progress] = []
    found = evaluate_tasks(
        PICO["llama"](), ["arc_easy"], tokenizer=pico_tokenizer(), data=data, limit=1, progress=events.append
    )
    (score,) = found.scores
    assert (score.examples, score.accuracy_error, found.limit) == (1, None, 1)
    assert found.notes == ("only the first 1 examples of each task were scored (--limit).",)
    assert (events[-1].stage, events[-1].done, events[-1].total) == ("task arc_easy", 4, 4)


def test_long_prompts_are_reported(tmp_path: Path) -> None:
    write_lines(tmp_path / "lambada_openai.jsonl", [{"text": "word " * 60 + "end"}])
    found = evaluate_tasks(PICO["llama"](), ["lambada_openai"], tokenizer=pico_tokenizer(), data=tmp_path)
    assert "lambada_openai: some prompts fill the 256 tokens the model can read" in found.scores[0].notes[-1]


def test_nan_is_an_error(data: Path) -> None:
    model = PICO["llama"]()
    model.model.norm.weight.data.fill_(float("nan"))
    with pytest.raises(NumericalError, match="NaN on example 0 of arc_easy"):
        evaluate_tasks(model, ["arc_easy"], tokenizer=pico_tokenizer(), data=data)
    assert not model._forward_hooks


class Loads:
    """Counts how often a model is loaded."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import basis_sharing.evaluation.tasks as module

        self.count, original = 0, module.load_any

        def load(*arguments: Any) -> Any:
            self.count += 1
            return original(*arguments)

        monkeypatch.setattr(module, "load_any", load)


def test_a_comparison_pairs_examples_and_says_whose_note_it_is(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    one, other = save_pico("llama", tmp_path / "one"), save_pico("llama", tmp_path / "other", dtype=torch.bfloat16)
    text, cache = tmp_path / "text.txt", default_folder()
    text.write_text("The quick brown fox jumps over the lazy dog. " * 10)
    evaluate_tasks(one, ["arc_easy"], data=data, cache=cache, limit=3)
    settings: dict[str, Any] = {"tasks": ["arc_easy"], "task_data": data, "limit": 3}
    found = compare(one, other, text=str(text), length=64, prompts=(), **settings)
    (task,) = found.tasks
    assert task.task == "arc_easy"
    assert task.paired is not None
    assert task.paired.examples == 3
    assert found.notes[0] == "only the first 3 examples of each task were scored (--limit)."
    assert found.notes[1].startswith("arc_easy: arc_easy.jsonl has 30 examples")  # true of both: said once
    assert found.notes[2:] == ("A: kept from an earlier run (--no-cache measures again): arc_easy.",)


def test_scores_are_kept(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loads, cache = Loads(monkeypatch), tmp_path / "cache"
    model = save_pico("llama", tmp_path / "model")

    def run(**settings: Any) -> TaskResults:
        return evaluate_tasks(model, ["arc_easy"], data=data, cache=cache, **settings)

    first, again = run(), run()
    assert loads.count == 1
    assert again.scores == first.scores
    assert again.notes == ("kept from an earlier run (--no-cache measures again): arc_easy.",)
    run(limit=3)
    run(dtype=torch.bfloat16)
    assert loads.count == 3
    assert len(list(cache.rglob("arc_easy-*.json"))) == 3
    write_lines(data / "arc_easy.jsonl", arc_examples(30, seed=1))
    assert run().scores[0].data_fingerprint != first.scores[0].data_fingerprint
    assert loads.count == 4
    tokenizer = pico_tokenizer()
    tokenizer.add_tokens(["river"])
    tokenizer.save_pretrained(model)
    run()
    assert loads.count == 5
    evaluate_tasks(model, ["arc_easy"], data=data)
    assert loads.count == 6


def test_a_damaged_cache_is_measured_again(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loads, cache = Loads(monkeypatch), tmp_path / "cache"
    model = save_pico("llama", tmp_path / "model")
    first = evaluate_tasks(model, ["arc_easy"], data=data, cache=cache)
    (file,) = cache.rglob("*.json")
    good = file.read_text()
    for damage, sentence in (
        (good[:100], "is not valid JSON"),
        (good.replace('"accuracy"', '"acuracy"'), "is damaged (score.accuracy: field required)"),
        (good.replace('"key": "', '"key": "0'), "holds that of another question"),
    ):
        file.write_text(damage)
        again = evaluate_tasks(model, ["arc_easy"], data=data, cache=cache)
        assert again.scores == first.scores
        assert again.notes[0].startswith("arc_easy: a kept score is measured again, ")
        assert sentence in again.notes[0]
        assert file.read_text() == good
    assert loads.count == 4


def test_results_are_read_back(tmp_path: Path, data: Path) -> None:
    found = evaluate_tasks(PICO["llama"](), ["arc_easy"], tokenizer=pico_tokenizer(), data=data)
    found.write(tmp_path / "tasks.json")
    assert TaskResults.read(tmp_path / "tasks.json") == found
    marks = json.loads((tmp_path / "tasks.json").read_text())["scores"][0]["correct"]
    assert marks == "".join("01"[mark] for mark in found.scores[0].correct or ())


def test_task_names() -> None:
    assert task_names(["paper", " boolq ", "piqa", ""]) == (*PAPER, "boolq")
    with pytest.raises(RecipeError, match="no task is named: give some of paper, openbookqa"):
        task_names([" "])


def rolling(model: Any, text: str) -> float:
    from lm_eval.api.instance import Instance

    with harness.silenced():
        wrapped = harness.wrap(model, pico_tokenizer(), 1)
        request = Instance(request_type="loglikelihood_rolling", doc={}, arguments=(text,), idx=0)
        (found,) = wrapped.loglikelihood_rolling([request])
    return float(found)


def test_perplexity_and_the_rolling_log_likelihood(tmp_path: Path) -> None:
    """The harness puts the beginning-of-sequence token before the text and predicts the first token from it too.

    On a window that starts with this token we measure exactly what it sums; on the plain text of n tokens we sum the
    n - 1 terms from the second token on, each without the extra token in its context.
    """
    model, tokenizer = PICO["llama"](), pico_tokenizer()
    text = "Perplexity is the exponential of the mean negative log-likelihood of a token."
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    theirs = rolling(model, text)

    np.savez(tmp_path / "bos.npz", input_ids=np.array([[tokenizer.bos_token_id, *ids]]))
    same = basis_sharing.evaluate(
        model, str(tmp_path / "bos.npz"), tokenizer=tokenizer, length=len(ids) + 1
    ).perplexities[0]
    assert same.tokens == len(ids)
    assert -same.nats_per_token * same.tokens == pytest.approx(theirs, rel=1e-6)

    (tmp_path / "text.txt").write_text(text)
    ours = basis_sharing.evaluate(model, str(tmp_path / "text.txt"), tokenizer=tokenizer, length=len(ids)).perplexities[
        0
    ]
    assert ours.tokens == len(ids) - 1

    def terms(context: list[int]) -> list[float]:
        """Return the log-likelihood of each token after the first of a sequence."""
        with torch.no_grad():
            logits = model(torch.tensor([context])).logits[0, :-1].log_softmax(-1)
        return [logits[i, token].item() for i, token in enumerate(context[1:])]

    with_bos, without = terms([tokenizer.bos_token_id, *ids]), terms(ids)
    first, changed = with_bos[0], sum(with_bos[1:]) - sum(without)
    assert theirs == pytest.approx(-ours.nats_per_token * ours.tokens + first + changed, rel=1e-5)
    assert abs(changed) > 0.01
