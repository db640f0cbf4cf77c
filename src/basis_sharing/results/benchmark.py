"""How fast models are and how much memory they need, measured side by side."""

from typing import Literal

from basis_sharing.results.base import Frozen, Result

Workload = Literal["prefill", "first token", "decode"]
Execution = Literal["eager", "compiled"]


class BenchmarkSettings(Frozen):
    """What was measured.

    Attributes:
        prompt_tokens: Tokens of a prompt; they are random.
        new_tokens: Tokens decoded after it, one at a time.
        batch_sizes: Sequences decoded at once.
        repeats: How often everything was measured at least, after one warm-up.
        precision: Repeats went on until speeds were known so well, four times as many at most; None: they did not.
        compiled: Whether compiled execution was measured beside eager execution.
        memory: Whether peaks of memory were measured.
        dtype: Dtype asked for; ``"auto"``: as in each checkpoint.
        device: Device the models ran on: ``"cpu"``, ``"cuda"`` or ``"mps"``.
        seed: Seed of the prompts.
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


class Spread(Frozen):
    """The middle of several measurements and how far they lie apart.

    Attributes:
        median: Their median.
        lower: Their lower quartile.
        upper: Their upper quartile.
    """

    median: float
    lower: float
    upper: float


class Timing(Frozen):
    """One workload on one model.

    Attributes:
        workload: ``"prefill"``: one forward pass over a prompt, logits of all tokens, no cache. ``"first token"``: one
            forward pass that fills the cache, logits of the last token, and the choice of the next. ``"decode"``: one
            token more for every sequence of the batch.
        execution: Eager, or compiled (decoding then uses a static cache).
        batch: Number of sequences.
        seconds: Seconds of one pass (for decoding: of one token of the batch); one number per repeat, the median of
            the passes in it.
        time: Their median and quartiles.
        speed: How many times as fast as the first model: quotients of the times of the same repeat, so that what slows
            the whole machine down for a while cancels.
        ideal_speed: The same if only the work counted: multiply-adds for a prefill and a first token, bytes of weights
            read for decoding.
        uncertainty: Twice the standard error of the speed, as a fraction of it; None for the first model and for a
            single repeat.
    """

    workload: Workload
    execution: Execution
    batch: int
    seconds: tuple[float, ...]
    time: Spread
    speed: Spread
    ideal_speed: float
    uncertainty: float | None = None


class Work(Frozen):
    """What a model has to do, whatever the machine.

    Attributes:
        prefill_multiply_adds: Multiply-adds of the prefill of one prompt: all matrix products, the output head for
            every token, and attention.
        first_token_multiply_adds: The same with the output head for the last token only.
        weight_bytes_per_step: Bytes of weights that decoding one step reads. A basis shared by several projections is
            stored once but counted every time it is used: other weights displace it from the caches in between.
        products_per_step: Products with a weight matrix that one step makes, one after the other.
    """

    prefill_multiply_adds: int
    first_token_multiply_adds: int
    weight_bytes_per_step: int
    products_per_step: int


class PeakMemory(Frozen):
    """Peaks of memory of a fresh process, beyond what it held with all libraries imported.

    Attributes:
        libraries: Bytes it held then.
        loading: Peak bytes while the model was loaded.
        running: Peak bytes while it generated for the largest batch.
        device: Peak bytes of tensors on a CUDA device in the whole process; None elsewhere.
    """

    libraries: int
    loading: int
    running: int
    device: int | None


class BenchmarkedModel(Frozen):
    """Everything measured on one model.

    Attributes:
        model: The model as it was given.
        label: Short name in tables.
        dtype: Dtype it ran in.
        parameters: Parameters of the whole model, shared ones counted once.
        bytes_in_memory: Bytes of all parameters and buffers, shared storage counted once.
        bytes_on_disk: Bytes of its weight files.
        work: What it has to do per prompt and per token.
        memory: Peaks of memory; None where they were not asked for or the platform does not tell them.
        timings: Every workload.
    """

    model: str
    label: str
    dtype: str
    parameters: int
    bytes_in_memory: int
    bytes_on_disk: int
    work: Work
    memory: PeakMemory | None
    timings: tuple[Timing, ...]


class BenchmarkResult(Result):
    """Several models measured in one run; everything relative is relative to the first.

    Attributes:
        settings: What was measured.
        device_name: The processor or graphics card, as far as the platform tells.
        threads: Threads of PyTorch on the CPU.
        models: The models, in the order they were given.
        notes: What a reader has to know, one sentence each.
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
        """How often workloads were measured: a number, or the least and the largest."""
        counts = {len(timing.seconds) for timing in self.models[0].timings}
        return f"{min(counts)} to {max(counts)}" if len(counts) > 1 else str(max(counts))
