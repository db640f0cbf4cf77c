"""Statistics of a calibration text, collected temporarily or cached in the run's work folder."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from basis_sharing.calibration.backward import backward_sweep
from basis_sharing.calibration.fisher import row_fisher
from basis_sharing.calibration.forward import sweep
from basis_sharing.calibration.moments import Moments, MomentStore, Statistics
from basis_sharing.calibration.text import CalibrationText
from basis_sharing.models.family import Decoder
from basis_sharing.run.machine import Machine
from basis_sharing.run.run import Run
from basis_sharing.run.work import measured


@contextmanager
def collected_moments(
    run: Run, text: CalibrationText, statistics: Statistics, *, gradients: bool = False
) -> Iterator[MomentStore]:
    """Yield the moments of the projections' inputs and, with ``gradients``, of the loss gradients at their outputs.

    With a work folder they are cached there and reused; otherwise they are deleted when the context exits.
    """
    model, decoder, machine, work = run.model, run.collected, run.machine, run.work

    def blocks(statistics: Statistics, folder: Path | None) -> Iterator[tuple[int, dict[str, Moments]]]:
        backward = partial(backward_sweep, model, decoder, text.input_ids, dtype=text.dtype, folder=folder)
        forward = partial(sweep, model, decoder, text.input_ids, statistics, dtype=text.dtype, folder=folder)
        return (backward if gradients else forward)(machine=machine, progress=run.progress)

    if work is None:
        with _store(decoder, machine, statistics, gradients) as store:
            store.fill(blocks(statistics, None))
            yield store
        return
    # Cached moments contain all statistics so that every method can use them; those measured with gradients are a
    # superset of those without.
    everything, about = Statistics(gram=True, abs_sum=True), text.about(decoder)
    folder = None if gradients else work.find("gradients", about)
    if folder is None:
        kind = "gradients" if gradients else "moments"
        folder = work.measured(kind, about, lambda folder: MomentStore(folder).fill(blocks(everything, folder)))
    yield MomentStore(folder)


@contextmanager
def moments_of_now(
    run: Run, text: CalibrationText, statistics: Statistics, *, stage: str, folder: Path | None
) -> Iterator[MomentStore]:
    """Yield the moments of the inputs of the projections to compress, in the current state of the model.

    Args:
        run: The run.
        text: The calibration text.
        statistics: The statistics to collect.
        stage: Name of the stage in progress events.
        folder: Where the moments are kept; an interrupted pass over the same model and text is resumed from there.
            None: they are deleted when the context exits.
    """
    decoder, machine = run.decoder, run.machine
    with nullcontext(MomentStore(folder)) if folder is not None else _store(decoder, machine, statistics) as store:
        store.fill(
            sweep(
                run.model,
                decoder,
                text.input_ids,
                statistics,
                dtype=text.dtype,
                stage=stage,
                folder=folder,
                machine=machine,
                progress=run.progress,
            )
        )
        yield store


def collected_fisher(run: Run, text: CalibrationText) -> dict[str, Tensor]:
    """Return the Fisher information of the input features of every projection, shape ``[d_in]``, fp64."""
    return measured(
        run.work,
        "fisher",
        text.about(run.collected),
        lambda: row_fisher(run.model, run.collected, text.input_ids, machine=run.machine, progress=run.progress),
        write=lambda fisher, folder: save_file(fisher, folder / "fisher.safetensors"),
        read=lambda folder: load_file(folder / "fisher.safetensors"),
    )


@contextmanager
def _store(
    decoder: Decoder, machine: Machine, statistics: Statistics, gradients: bool = False
) -> Iterator[MomentStore]:
    """Yield a temporary store for moments, on disk if memory is too small for them."""
    widths = {(p.block, p.input): p.d_in for p in decoder.measured}
    needed = sum(4 * width**2 if statistics.gram else 8 * width for width in widths.values())
    needed += sum(4 * p.d_out**2 for p in decoder.measured) if gradients else 0
    with tempfile.TemporaryDirectory(prefix="basis-sharing-") as folder:
        yield MomentStore(None if machine.holds_moments(needed) else Path(folder))
