"""The result of a benchmark: speed and memory of several models, measured side by side."""

from typing import Literal

from basis_sharing.results.base import Frozen, Result

Workload = Literal["prefill", "first token", "decode"]
Execution = Literal["eager", "compiled", "vllm", "exported"]


class BenchmarkSettings(Frozen):
    """The settings of a benchmark.

    Attributes:
        prompt_tokens: Number of (random) tokens of a prompt.
        new_tokens: Tokens decoded after it, one at a time.
        batch_sizes: Numbers of sequences decoded at once.
        repeats: Smallest number of repeats, after one warm-up.
        precision: Repeat, at most four times as often, until the uncertainty of all speeds is at most this fraction;
            None: stop after ``repeats``.
        compiled: Whether compiled execution was measured in addition to eager execution; in vLLM, instead of it.
        memory: Whether peaks of memory were measured.
        dtype: Dtype of the setting; ``"auto"``: as in each checkpoint.
        device: Device the models ran on: ``"cpu"``, ``"cuda"`` or ``"mps"``.
        seed: Seed of the prompts.
        engine: What ran the models: ``"pytorch"`` (transformers), ``"vllm"``, or the runtime of exports, e.g.
            ``"onnx"``.
    """

    prompt_tokens: int
    new_tokens: int
    batch_sizes: tuple[int, ...]
    repeats: int
    precision: float | None = None
    compiled: bool
    memory: bool
    dtype: str
    device: str
    seed: int
    engine: str = "pytorch"


class Spread(Frozen):
    """Median and quartiles of several measurements.

    Attributes:
        median: Their median.
        lower: Their lower quartile.
        upper: Their upper quartile.
    """

    median: float
    lower: float
    upper: float


class Timing(Frozen):
    """The times of one workload on one model.

    Attributes:
        workload: ``"prefill"``: one forward pass over a prompt, logits of its last token, no cache. ``"first token"``:
            one forward pass that fills the cache, logits of the last token, and the choice of the next. ``"decode"``:
            one more token for every sequence of the batch, with a static cache.
        execution: Eager or compiled (on CUDA with CUDA graphs) in PyTorch, in vLLM, or as an export in its runtime.
        batch: Number of sequences.
        seconds: Seconds of one pass (for decoding: of one token of the batch); one number per repeat, the median of
            its passes.
        time: Median and quartiles of ``seconds``.
        speed: Speed as a multiple of the first model's: quotients of the times of the same repeat, in which temporary
            slowdowns of the whole machine cancel.
        ideal_speed: The speed in proportion to the work alone: multiply-adds for a prefill and a first token, bytes of
            weights read for decoding; None if the work is not known.
        uncertainty: Twice the standard error of the speed, as a fraction of it; None for the first model and for a
            single repeat.
        warm_up: Seconds of the first repeat, which counts nowhere else: compiling, the start of vLLM, preparation and
            first touches, with its passes; None in files of earlier versions.
    """

    workload: Workload
    execution: Execution
    batch: int
    seconds: tuple[float, ...]
    time: Spread
    speed: Spread
    ideal_speed: float | None
    uncertainty: float | None = None
    warm_up: float | None = None


class Work(Frozen):
    """The amount of work of a model, independent of the machine.

    Attributes:
        prefill_multiply_adds: Multiply-adds of the prefill of one prompt: all matrix products, the output head for
            the last token (in results up to 0.2: for every token), and attention.
        first_token_multiply_adds: The same for the pass that fills the cache.
        weight_bytes_per_step: Bytes of weights read in one decoding step. A basis shared by several projections is
            stored once but counted at every use, because other weights displace it from the caches in between.
        products_per_step: Number of successive products with weight matrices in one decoding step.
    """

    prefill_multiply_adds: int
    first_token_multiply_adds: int
    weight_bytes_per_step: int
    products_per_step: int


class PredictedPrefill(Frozen):
    """The predicted speed of a prefill.

    Attributes:
        tokens: Tokens of all prompts together.
        speed: Speed as a multiple of the original's.
    """

    tokens: int
    speed: float


class PredictedDecode(Frozen):
    """The predicted speed of decoding.

    Attributes:
        batch: Number of sequences.
        speed: Speed as a multiple of the original's.
    """

    batch: int
    speed: float


class PredictedSpeeds(Frozen):
    """What the plan of a compressed model predicted, as its ``config.json`` holds it.

    Attributes:
        prefill: The speed of a prefill; None if it was not predicted.
        decode: The speed of decoding; None if it was not predicted.
    """

    prefill: PredictedPrefill | None = None
    decode: PredictedDecode | None = None


class PeakMemory(Frozen):
    """Peaks of memory of a fresh process, in addition to its memory with all libraries imported.

    Attributes:
        libraries: Bytes of the process with all libraries imported.
        loading: Peak bytes while the model was loaded.
        running: Peak bytes while it generated for the largest batch.
        device: Peak bytes of tensors on a CUDA device in the whole process; None on other devices.
    """

    libraries: int
    loading: int
    running: int
    device: int | None


class BenchmarkedModel(Frozen):
    """All measurements of one model.

    Attributes:
        model: The model as it was given.
        label: Short name in tables.
        dtype: Dtype it ran in.
        parameters: Parameters of the whole model, shared ones counted once.
        bytes_in_memory: Bytes of all parameters and buffers, shared storage counted once; None for exports.
        bytes_on_disk: Bytes of its weight files.
        work: Its work per prompt and per token; None for exports.
        memory: Peaks of memory; None if they were not measured.
        timings: The timings of all workloads.
        predicted: The speeds that its plan predicted; None if it predicted none.
    """

    model: str
    label: str
    dtype: str
    parameters: int
    bytes_in_memory: int | None
    bytes_on_disk: int
    work: Work | None
    memory: PeakMemory | None
    timings: tuple[Timing, ...]
    predicted: PredictedSpeeds | None = None

    def as_served(self, *workloads: Workload) -> Timing:
        """Return the first timing of one of these workloads that was compiled, or if there is none the first one.

        There is a timing of one of them.
        """
        timings = [timing for timing in self.timings if timing.workload in workloads]
        return next((timing for timing in timings if timing.execution == "compiled"), timings[0])

    def predicted_speed(self, timing: Timing, prompt_tokens: int) -> float | None:
        """Return the predicted speed of a workload; None if it was not predicted for this size."""
        prefill, decode = (None, None) if self.predicted is None else (self.predicted.prefill, self.predicted.decode)
        if timing.workload == "decode":
            return decode.speed if decode is not None and decode.batch == timing.batch else None
        return prefill.speed if prefill is not None and prefill.tokens == timing.batch * prompt_tokens else None


class BenchmarkResult(Result):
    """Several models measured in one run; relative numbers are relative to the first.

    Attributes:
        settings: The settings of the benchmark.
        device_name: Name of the processor or graphics card, if the platform reports it.
        threads: Threads of PyTorch on the CPU.
        models: The models, in the order they were given.
        notes: Notes for the reader, one sentence each.
        versions: Versions of the software.
    """

    kind: Literal["benchmark"] = "benchmark"
    settings: BenchmarkSettings
    device_name: str
    threads: int
    models: tuple[BenchmarkedModel, ...]
    notes: tuple[str, ...]
    versions: dict[str, str]

    @property
    def repeats(self) -> str:
        """The number of repeats of the workloads, or their smallest and largest numbers."""
        counts = {len(timing.seconds) for timing in self.models[0].timings}
        return f"{min(counts)} to {max(counts)}" if len(counts) > 1 else str(max(counts))
