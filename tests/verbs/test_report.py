"""The report: one page that needs nothing else, says what the results say, and is the same twice."""

import re
from html.parser import HTMLParser
from io import StringIO
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import pytest
from rich.console import Console

from basis_sharing import compress, report
from basis_sharing.errors import OutputError, ResultError
from basis_sharing.models.source import fingerprint, resolve
from basis_sharing.reports.curve_figure import points_of
from basis_sharing.reports.layout import EMBEDDINGS, layout_of
from basis_sharing.reports.tables.compression import compression_summary
from basis_sharing.reports.tables.sizes import size_table
from basis_sharing.reports.terminal import printable
from basis_sharing.results.benchmark import (
    BenchmarkedModel,
    BenchmarkResult,
    BenchmarkSettings,
    PeakMemory,
    Spread,
    Timing,
    Work,
)
from basis_sharing.results.comparison import (
    Agreement,
    Comparison,
    Continuation,
    Difference,
    Disagreement,
    Generation,
    Interval,
    Limits,
    Measured,
    Verdict,
)
from basis_sharing.results.compression import RESULT_FILE, CompressionResult
from basis_sharing.results.evaluation import EvaluationResult
from basis_sharing.results.paired import task_differences
from basis_sharing.results.tasks import CachedScore, TaskResults, TaskScore
from pico import save_pico
from samples import rollout

PICTURES = ("perplexity", "ranks", "sharing", "sizes")


class Page(HTMLParser):
    """What a browser would see of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))
        self.text = re.sub(r"\s+", " ", " ".join(self.words))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an original, and three compressions of it: ``planned``, ``paired`` and ``unmeasured``."""
    root = tmp_path_factory.mktemp("report")
    text = root / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog. " * 60)
    model = save_pico("llama", root / "original")
    settings = {"calibration": str(text), "windows": 4, "length": 64}
    compress(model, 0.3, evaluate=(str(text),), output=root / "planned", **settings)
    compress(model, 0.4, method="basis-sharing", evaluate=(str(text),), output=root / "paired", **settings)
    compress(model, 0.2, method="svd", output=root / "unmeasured")
    return root


def own(folder: Path) -> CompressionResult:
    return CompressionResult.read(folder / RESULT_FILE)


@pytest.mark.parametrize("name", ["planned", "paired", "unmeasured"])
def test_the_parts_of_the_layout_sum_to_the_measured_bytes(root: Path, name: str) -> None:
    result = own(root / name)
    layout = layout_of(root / name, result)
    assert sum(layout.before.values()) == result.before.bytes_in_memory
    assert sum(layout.after.values()) == result.after.bytes_in_memory
    assert layout.before[EMBEDDINGS] == layout.after[EMBEDDINGS]
    kept = sum(layout.after[role] for role in layout.roles)
    assert kept == 4 * result.after.projection_parameters
    assert len(layout.cells) == 5 * 7
    dense = [cell for cell in layout.cells if cell.label is None]
    assert len(dense) == len(layout.cells) - sum(len(entry.members) for entry in result.entries)
    assert all(0 < cell.kept <= 1 for cell in layout.cells)


def test_the_page_needs_nothing_else_and_is_accessible(root: Path, tmp_path: Path) -> None:
    report(root / "planned", output=tmp_path / "r.html")
    page = Page(tmp_path / "r.html")
    assert page.all("html")[0]["lang"] == "en"
    assert not page.all("script")
    assert not page.all("link")
    sources = [str(image["src"]) for image in page.all("img")]
    assert len(sources) == 4
    assert all(source.startswith("data:image/svg+xml;base64,") for source in sources)
    assert all(len(str(image["alt"])) > 40 for image in page.all("img"))
    assert "http" not in (tmp_path / "r.html").read_text().replace("http-equiv", "")
    headings = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h\d", tag)]
    assert headings[0] == 1
    assert headings.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(headings))
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for attributes in page.all("section"):
        assert "aria-label" in attributes or attributes["aria-labelledby"] in ids


def test_the_page_says_what_the_result_says(root: Path, tmp_path: Path) -> None:
    report(root / "planned", output=tmp_path / "r.html")
    text, result = Page(tmp_path / "r.html").text, own(root / "planned")
    assert f"{result.before.parameters:,} \u2192 {result.after.parameters:,}" in text
    dense, small = result.perplexity_before[0].perplexity, result.perplexity_after[0].perplexity
    assert f"{dense:,.3f} \u2192 {small:,.3f}" in text
    assert f"{small / dense:.3f} \u00d7" in text
    assert "The plan expected" in text
    assert "--ratio 0.3" in text
    assert 'AutoModelForCausalLM.from_pretrained("planned", trust_remote_code=True)' in text
    assert result.versions["torch"] in text
    assert str(result.model_fingerprint) in text


def test_what_was_not_measured_is_said(root: Path, tmp_path: Path) -> None:
    report(root / "unmeasured", output=tmp_path / "r.html")
    page = Page(tmp_path / "r.html")
    assert "What that costs in quality was not measured" in page.text
    assert "Nothing is shared: every compressed projection has a basis of its own." in page.text
    assert len(page.all("img")) == 2


def test_the_same_input_gives_the_same_bytes(root: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        report(root / "paired", output=tmp_path / f"{name}.html", figures=tmp_path / name)
    assert (tmp_path / "one.html").read_bytes() == (tmp_path / "two.html").read_bytes()
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert files == sorted(f"{name}.{kind}" for name in PICTURES for kind in ("svg", "png"))
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
        if file.endswith("svg"):
            tree = ElementTree.parse(tmp_path / "one" / file)
            assert not tree.findall(".//{http://www.w3.org/2000/svg}text"), "text is outlines and needs no font"


def test_names_are_escaped(root: Path, tmp_path: Path) -> None:
    folder = tmp_path / "<b>bold & co"
    folder.mkdir()
    for path in (root / "unmeasured").iterdir():
        (folder / path.name).symlink_to(path)
    report(folder, output=tmp_path / "r.html")
    page = Page(tmp_path / "r.html")
    assert not page.all("b")
    assert "<b>bold & co: compression report" in page.text


def test_other_compressions_become_points_of_the_curve(root: Path, tmp_path: Path) -> None:
    report(root / "planned", [root / "paired" / RESULT_FILE], output=tmp_path / "r.html")
    alts = [str(image["alt"]) for image in Page(tmp_path / "r.html").all("img")]
    other = own(root / "paired")
    assert any(f"basis-sharing, {100 * other.ratio_reached:.0f} % less" in alt for alt in alts)
    result = own(root / "planned")
    measured = tuple(zip(result.perplexity_before, result.perplexity_after, strict=True))
    points = points_of(result, measured, label="planned")
    assert [point.label for point in points] == ["planned", "expected by the plan"]


def comparison(root: Path, first: str = "original", second: str = "planned") -> Comparison:
    result = own(root / "planned")
    one, other = result.perplexity_before[0], result.perplexity_after[0]
    wide = Interval(low=0.9, high=1.2)
    return Comparison(
        first=Measured(model=str(root / first), perplexity=one),
        second=Measured(model=str(root / second), perplexity=other),
        difference=Difference(
            nats_per_token=0.1, nats_interval=Interval(low=-0.1, high=0.3), quotient=1.05, quotient_interval=wide
        ),
        agreement=Agreement(
            mean_kl=0.25,
            kl_interval=None,
            percentile_99_kl=1.5,
            top1=0.875,
            top1_interval=Interval(low=0.8, high=0.95),
            window_kl=(0.25,),
            window_top1=(0.875,),
            tokens=63,
            disagreements=(
                Disagreement(
                    window=0,
                    position=3,
                    context="a\nb",
                    token=" ",
                    first="x",
                    first_probability=0.5,
                    second="\x01",
                    second_probability=0.25,
                    kl=2.5,
                ),
            ),
        ),
        generations=(
            Generation(
                prompt="Once <upon>",
                first=Continuation(text="a time\x00", tokens=2, ended=True),
                second=Continuation(text="", tokens=0, ended=False),
            ),
        ),
        new_tokens=8,
        dtype="auto",
        limits=Limits(max_kl=0.2),
        verdict=Verdict(held=False, sentence="B breaks one limit.", checks=()),
        drift=None,
        first_is_stored=False,
        notes=(),
        versions={},
    )


def test_perplexity_that_only_a_comparison_measured_is_the_answer(root: Path, tmp_path: Path) -> None:
    found = comparison(root, second="unmeasured")
    found.write(tmp_path / "c.json")
    report(root / "unmeasured", [tmp_path / "c.json"], output=tmp_path / "r.html")
    page = Page(tmp_path / "r.html")
    quotient = found.second.perplexity.perplexity / found.first.perplexity.perplexity
    assert f"{quotient:.3f} times as high" in page.text
    assert f"{quotient:.3f} \u00d7" in page.text
    assert "was not measured" not in page.text
    assert len(page.all("img")) == 3


def test_an_original_that_is_quantized_on_disk_is_said(root: Path, tmp_path: Path) -> None:
    result = own(root / "planned")
    assert not result.original_is_quantized
    before = result.before.model_copy(update={"bytes_on_disk": result.before.parameters})
    quantized = result.model_copy(update={"before": before})
    assert quantized.original_is_quantized
    assert "On disk the original is quantized" in " ".join(size_table(quantized).notes)
    console = Console(file=StringIO(), width=120)
    console.print(printable(*compression_summary(quantized)))
    assert "On disk the original is quantized" in console.file.getvalue()  # type: ignore[attr-defined]


def test_a_comparison_has_its_section(root: Path, tmp_path: Path) -> None:
    comparison(root).write(tmp_path / "c.json")
    report(root / "planned", [tmp_path / "c.json"], output=tmp_path / "r.html")
    raw, text = (tmp_path / "r.html").read_text(), Page(tmp_path / "r.html").text
    assert "B breaks one limit." in text
    assert "same next token 87.5 %" in text
    assert "1.0500 \u00d7 0.9000 to 1.2000" in text
    assert "\u22120.10000 to +0.30000" in text
    assert "Once <upon>" in text
    assert "a time\\x00" in text
    assert "(only end-of-text)" in text
    assert '...a\\nb " "' in text
    assert "\x00" not in raw
    assert "\x01" not in raw


def benchmark(root: Path, *names: str) -> BenchmarkResult:
    settings = BenchmarkSettings(
        prompt_tokens=8,
        new_tokens=2,
        batch_sizes=(1,),
        repeats=1,
        compiled=False,
        memory=True,
        dtype="auto",
        device="cpu",
        seed=0,
    )

    def model(name: str, seconds: float) -> BenchmarkedModel:
        return BenchmarkedModel(
            model=str(root / name),
            label=name,
            dtype="float32",
            parameters=10,
            bytes_in_memory=40,
            bytes_on_disk=40,
            work=Work(
                prefill_multiply_adds=8, first_token_multiply_adds=8, weight_bytes_per_step=40, products_per_step=3
            ),
            memory=PeakMemory(libraries=1, loading=2**20, running=2**21, device=None),
            timings=tuple(
                Timing(
                    workload=workload,
                    execution="eager",
                    batch=1,
                    seconds=(seconds,),
                    time=Spread(median=seconds, lower=seconds, upper=seconds),
                    speed=Spread(median=0.004 / seconds, lower=1, upper=2),
                    ideal_speed=1.25,
                )
                for workload in ("prefill", "first token", "decode")
            ),
        )

    models = tuple(model(name, 0.004 / (1 + index)) for index, name in enumerate(names))
    return BenchmarkResult(
        settings=settings, device_name="a processor", threads=2, models=models, notes=("a note",), versions={}
    )


def test_a_benchmark_has_its_section(root: Path, tmp_path: Path) -> None:
    benchmark(root, "original", "planned").write(tmp_path / "b.json")
    report(root / "planned", [tmp_path / "b.json"], output=tmp_path / "r.html")
    text = Page(tmp_path / "r.html").text.replace("\u00a0", " ")
    assert "speed, decoding, batch 1 2.00 \u00d7 4.0 ms \u2192 2.0 ms" in text
    assert "decode, batch 1 original 4.00 (4.00 to 4.00) 250 1 1" in text
    assert "decode, batch 1 planned 2.00 (2.00 to 2.00) 500 2.00 \u00d7 (1.00 to 2.00) 1.25 \u00d7" in text
    assert "while loading while generating original 1.0 MiB 2.0 MiB planned 1.0 MiB (+0.0 %)" in text
    assert "a note" in text


def tasks(weights: str | None, correct: tuple[bool, ...]) -> TaskResults:
    score = TaskScore(
        task="arc_easy",
        version="1",
        split="test",
        source="file.jsonl",
        examples=len(correct),
        accuracy=sum(correct) / len(correct),
        accuracy_error=0.1,
        normalized_accuracy=None,
        normalized_accuracy_error=None,
        correct=correct,
        correct_normalized=None,
        data_fingerprint="d",
        prompt_fingerprint="p",
    )
    return TaskResults(
        model="x", model_fingerprint=weights, dtype="float32", limit=None, harness="0.4", scores=(score,), notes=()
    )


def test_tasks_are_paired(root: Path, tmp_path: Path) -> None:
    tasks(own(root / "planned").model_fingerprint, (True, True, True, False)).write(tmp_path / "before.json")
    tasks(fingerprint(resolve(root / "planned")), (True, False, True, False)).write(tmp_path / "after.json")
    files = [tmp_path / "after.json", tmp_path / "before.json"]
    report(root / "planned", files, output=tmp_path / "r.html")
    assert (
        "arc_easy (test) 4 75.0 \u00b1 10.0 50.0 \u00b1 10.0 \u221225.0 \u00b1 25.0 1 0 1.000"
        in Page(tmp_path / "r.html").text
    )


def test_tasks_of_a_comparison_are_shown(root: Path, tmp_path: Path) -> None:
    scores = tasks(None, (True, True, True, False)), tasks(None, (True, False, True, False))
    found = comparison(root).model_copy(update={"tasks": task_differences(*scores)})
    found.write(tmp_path / "c.json")
    report(root / "planned", [tmp_path / "c.json"], output=tmp_path / "r.html")
    expected = "arc_easy 75.0 % 50.0 % \u221225.0 \u00b1 25.0 1 0 1.000"
    assert expected in Page(tmp_path / "r.html").text


def test_a_rollout_has_its_section(root: Path, tmp_path: Path) -> None:
    rollout(str(own(root / "planned").model_fingerprint)).write(tmp_path / "rollout.json")
    report(root / "planned", [tmp_path / "rollout.json"], output=tmp_path / "r.html")
    text = Page(tmp_path / "r.html").text
    assert "Kept: 10% of gate, up removed" in text
    assert "1 gate, up 10 % 0.900 \u00d7 2.0 KiB 1.100 \u00d7 0.0500 90.0 % 1.25 \u00d7 1.25 \u00d7 kept" in text
    assert "70.0 % \u2013 \u2013 broken" in text
    assert "limits: max kl 0.2, min agreement 0.9" in text


def refused(tmp_path: Path, folder: Path, *results: Path) -> str:
    with pytest.raises(ResultError) as refusal:
        report(folder, results, output=tmp_path / "r.html")
    assert not (tmp_path / "r.html").exists()
    return str(refusal.value)


def test_results_about_another_model_are_refused(root: Path, tmp_path: Path) -> None:
    file = tmp_path / "f.json"
    comparison(root, "original", "paired").write(file)
    assert refused(tmp_path, root / "planned", file) == (
        f"{file} compares original with paired, not with planned: give a comparison of the original with this folder, "
        "in this order."
    )
    comparison(root, "stranger").write(file)
    assert refused(tmp_path, root / "planned", file) == (
        f"{file} measures against stranger, but this folder was made from original: give results against the same "
        "original."
    )
    benchmark(root, "planned", "original").write(file)
    assert "without planned beside the original" in refused(tmp_path, root / "planned", file)
    for weights in ("other", None):
        tasks(weights, (True, False)).write(file)
        assert "neither those of this folder nor of its original" in refused(tmp_path, root / "planned", file)
    own(root / "paired").model_copy(update={"model_fingerprint": "other"}).write(file)
    assert "with other weights than this folder's original" in refused(tmp_path, root / "planned", file)
    rollout("other").write(file)
    assert "is a rollout of original, with other weights" in refused(tmp_path, root / "planned", file)
    empty = rollout(str(own(root / "planned").model_fingerprint)).model_copy(update={"steps": ()})
    empty.write(file)
    assert "has no step yet" in refused(tmp_path, root / "planned", file)
    own_file = root / "planned" / RESULT_FILE
    assert refused(tmp_path, root / "planned", own_file) == (
        f"{own_file} holds the results of the folder itself: leave it out."
    )


def test_unknown_kinds_are_refused(root: Path, tmp_path: Path) -> None:
    score = tasks(None, (True,)).scores[0]
    CachedScore(key="k", score=score).write(tmp_path / "f.json")
    assert refused(tmp_path, root / "planned", tmp_path / "f.json") == (
        f"{tmp_path / 'f.json'} holds the results of a cached score; a report shows those of: comparison, benchmark, "
        "evaluation, tasks, compression, rollout."
    )


def test_an_evaluation_brings_its_task_scores(root: Path, tmp_path: Path) -> None:
    scored = tasks(own(root / "planned").model_fingerprint, (True, False))
    EvaluationResult(model="m", perplexities=(), tasks=scored, versions={}).write(tmp_path / "e.json")
    report(root / "planned", [tmp_path / "e.json"], output=tmp_path / "e.html")
    scored.write(tmp_path / "t.json")
    report(root / "planned", [tmp_path / "t.json"], output=tmp_path / "t.html")
    assert (tmp_path / "e.html").read_bytes() == (tmp_path / "t.html").read_bytes()
    EvaluationResult(model="m", perplexities=(), versions={}).write(tmp_path / "f.json")
    assert "holds perplexities only" in refused(tmp_path, root / "planned", tmp_path / "f.json")


def test_a_folder_that_mixes_two_models_is_refused(root: Path, tmp_path: Path) -> None:
    folder = save_pico("gpt2", tmp_path / "mixed")
    own(root / "planned").write(folder / RESULT_FILE)
    assert "its config.json is not compressed: compress again." in refused(tmp_path, folder)
    compress(save_pico("gpt2", tmp_path / "gpt2"), 0.2, method="svd", output=tmp_path / "small")
    own(root / "planned").write(tmp_path / "small" / RESULT_FILE)
    message = refused(tmp_path, tmp_path / "small")
    assert message.endswith("which its model does not have: the folder mixes two models; compress again.")


def test_pictures_that_exist_are_kept(root: Path, tmp_path: Path) -> None:
    (tmp_path / "sizes.png").write_text("mine")
    with pytest.raises(OutputError, match=r"sizes\.png exists"):
        report(root / "planned", output=tmp_path / "r.html", figures=tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sizes.png"]
    assert len(report(root / "planned", output=tmp_path / "r.html", figures=tmp_path, overwrite=True)) == 9
