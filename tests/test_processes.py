"""Several processes at one compression: the same plan, the same factors within rounding, and through failures."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from basis_sharing.calibration import backward
from basis_sharing.cli.main import main
from basis_sharing.errors import OutputError
from basis_sharing.models.family import Projection
from basis_sharing.results.compression import RESULT_FILE
from basis_sharing.run.processes import Processes
from basis_sharing.runtime.format_basis_sharing import entry_from
from basis_sharing.treatments.execute import _owners
from basis_sharing.verbs.compress import compress
from forks import Ended, forked
from pico import save_with_texts, weight_bytes

SETTINGS = {"windows": 17, "length": 32, "calibration_dtype": "float32"}
METHODS: dict[str, dict[str, Any]] = {
    "auto": {"ratio": 0.3},
    "without-gradients": {"ratio": 0.3, "gradients": False},
    "basis-sharing": {"ratio": 0.4, "method": "basis-sharing"},
    "fwsvd": {"ratio": 0.3, "method": "fwsvd"},
}


def worker(command: list[str], dies_at: int) -> None:
    """Run a command; the second process of a job dies when it runs a block for the ``dies_at``-th time."""
    run_block, calls = backward.run_block, 0

    def dying(*passed: Any) -> Any:
        nonlocal calls
        calls += 1
        if os.environ["RANK"] == "1" and calls == dies_at:
            raise RuntimeError("this process was meant to die")
        return run_block(*passed)

    backward.run_block = dying  # of this fork alone
    main(command)


@pytest.fixture(scope="module")
def space(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_with_texts(tmp_path_factory.mktemp("processes"))


def arguments(space: Path, output: Path, **settings: Any) -> list[str]:
    found = ["compress", str(space / "model"), "-o", str(output), "--calibration", str(space / "text.txt")]
    for name, value in ({**SETTINGS, **settings}).items():
        found += ["--no-gradients"] if name == "gradients" else [f"--{name.replace('_', '-')}", str(value)]
    return found


def launch(command: list[str], processes: int = 2, dies_at: int = -1) -> Ended:
    """Run a command in forks of this process, with the environment that torchrun gives; when one fails, end all."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": str(processes)}
    job = [
        forked(lambda: worker(command, dies_at), **place, RANK=str(rank), LOCAL_RANK=str(rank))
        for rank in range(processes)
    ]
    ended: list[Ended] = []
    for fork in reversed(job):
        if any(done.returncode for done in ended):
            fork.kill()
        ended.insert(0, fork.wait())
    failed = [done.returncode for done in reversed(ended) if done.returncode]
    return Ended([*failed, 0][0], *("".join(getattr(done, name) for done in ended) for name in ("stdout", "stderr")))


def torchrun(command: list[str]) -> Ended:
    """Run a command in two processes that torchrun starts."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    words = [*launcher, "-m", "basis_sharing", *command]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=300)
    return Ended(done.returncode, done.stdout, done.stderr)


def together(space: Path, method: str) -> Path:
    """Return what two processes make."""
    output = space / f"two-{method}"
    if not output.exists():
        command = arguments(space, output, **METHODS[method])
        done = torchrun(command) if method == "auto" else launch(command)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("written to") == 1, "only the first process speaks"
    return output


@pytest.mark.parametrize("method", METHODS)
def test_two_processes_make_what_one_makes(method: str, space: Path) -> None:
    folder = together(space, method)
    settings: dict[str, Any] = {**SETTINGS, **METHODS[method]}
    _, result = compress(str(space / "model"), output=space / method, calibration=str(space / "text.txt"), **settings)
    theirs = json.loads((folder / RESULT_FILE).read_text(encoding="utf-8"))
    assert bool(theirs["repair"]) == (settings.get("method", "auto") == "auto")
    entries = [entry_from(about["entry"]) for about in theirs["entries"]]
    assert [(e.members, e.rank) for e in entries] == [(e.members, e.entry.rank) for e in result.entries]
    one, two = (load_file(path / "model.safetensors") for path in (space / method, folder))
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        if name.endswith("coeff.weight"):
            basis = name.replace("coeff", "basis")
            if basis in one:  # the product, because the signs of basis vectors are anyone's
                tensor, other = tensor @ one[basis], two[name] @ two[basis]
                assert torch.allclose(tensor, other, atol=1e-3 * tensor.abs().max().item()), name
    assert not list(space.glob("two-*.work"))


def test_three_processes_share_seventeen_windows(space: Path) -> None:
    done = launch(arguments(space, space / "three", ratio=0.3), processes=3)
    assert done.returncode == 0, done.stderr
    assert (space / "three" / "model.safetensors").is_file()


@pytest.mark.parametrize("dies_at", [6, 30])
def test_a_process_that_dies_ends_the_job_and_the_next_start_goes_on(dies_at: int, space: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    command = arguments(space, output, **METHODS["auto"])
    done = launch(command, dies_at=dies_at)
    assert done.returncode != 0
    assert "this process was meant to die" in done.stderr
    assert not output.exists()
    assert (tmp_path / "out.work").is_dir()
    with pytest.raises(OutputError, match="setting processes = 2, now it is 1: give the same again"):
        compress(str(space / "model"), output=output, calibration=str(space / "text.txt"), **SETTINGS, ratio=0.3)
    done = launch(command)
    assert done.returncode == 0, done.stderr
    assert weight_bytes(output) == weight_bytes(together(space, "auto"))
    assert not (tmp_path / "out.work").exists()


def test_more_processes_than_windows_are_refused(space: Path, tmp_path: Path) -> None:
    done = launch(arguments(space, tmp_path / "out", ratio=0.3, windows=1))
    assert done.returncode != 0
    assert "1 calibration windows cannot be divided among 2 processes" in done.stderr


def test_only_compress_is_shared(space: Path) -> None:
    done = launch(["inspect", str(space / "model")])
    assert done.returncode != 0
    assert "only compress shares its work among processes: run inspect alone." in done.stderr


def test_groups_are_divided_by_the_work_they_are() -> None:
    def group(width: int) -> list[Projection]:
        return [Projection("a", 0, "q", "x", width, width, bias=False, transposed=False)]

    owners = _owners([group(width) for width in (8, 64, 8, 64, 8, 8)], 2)
    assert {owners[1], owners[3]} == {0, 1}
    assert sorted(owners) == [0, 0, 0, 1, 1, 1]
    assert _owners([group(8)] * 3, 1) == [0, 0, 0]


def test_alone_nothing_is_exchanged() -> None:
    processes = Processes.current()
    tensor = torch.ones(3)
    processes.add_up(tensor)
    assert torch.equal(tensor, torch.ones(3))
    assert processes.first
    assert (processes.gather(5), processes.given_by(0, 7), list(processes.own([1, 2]))) == ([5], 7, [1, 2])
