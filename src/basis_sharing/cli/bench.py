"""``basis-sharing bench``."""

from functools import partial

from basis_sharing.cli import arguments
from basis_sharing.cli import measuring_arguments as measuring


def bench(
    models: measuring.BenchmarkedModels,
    prompt_tokens: measuring.PromptTokens = None,
    new_tokens: measuring.DecodedTokens = 32,
    batch_sizes: measuring.BatchSizes = "1,8",
    repeats: measuring.Repeats = 5,
    precision: measuring.Precision = "2%",
    compile: measuring.Compile = None,
    engine: measuring.Engine = "pytorch",
    dtype: measuring.Dtype = "auto",
    device: measuring.Device = None,
    threads: measuring.Threads = None,
    no_memory: measuring.NoMemory = False,
    seed: measuring.PromptSeed = 0,
    output: measuring.ResultFile = None,
    overwrite: measuring.Overwrite = False,
    as_json: arguments.AsJson = False,
) -> None:
    """Measure how fast models are and how much memory they need, side by side.

    Prefill, time to the first token, decoding, peaks of memory, bytes on disk. The models take turns after every
    forward pass, so that the comparison holds on a busy machine; beside every speed stands the one that less work alone
    would give:

        basis-sharing bench ./llama ./llama-20
    """
    sizes = _batch_sizes(batch_sizes)

    from basis_sharing.cli.console import progress_bars
    from basis_sharing.cli.printing import deliver
    from basis_sharing.reports.tables.benchmark import benchmark_tables
    from basis_sharing.run.files import check_files
    from basis_sharing.verbs.bench import bench as run

    if output is not None:
        check_files([output], overwrite=overwrite)
    call = partial(run, models, prompt_tokens=prompt_tokens, new_tokens=new_tokens, batch_sizes=sizes, repeats=repeats)
    call = partial(call, precision=precision, compile=compile, engine=engine, memory=not no_memory)
    with progress_bars() as progress:
        result = call(dtype=dtype, device=device, threads=threads, seed=seed, progress=progress)
    deliver(result, benchmark_tables, output, as_json)


def _batch_sizes(text: str) -> list[int]:
    from basis_sharing.errors import RecipeError

    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise RecipeError(
            f"--batch-sizes {text}: give whole numbers with commas between them, e.g. --batch-sizes 1,8."
        ) from None
