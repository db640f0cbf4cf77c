"""Candidates come back from a file as they were."""

from pathlib import Path

import numpy as np

from basis_sharing.models.decoder import describe
from basis_sharing.planning.allocation import Lane
from basis_sharing.planning.candidate_files import read_candidates, write_candidates
from basis_sharing.planning.candidates import Candidate, Candidates
from pico import PICO


def test_candidates_survive_a_file(tmp_path: Path) -> None:
    decoder = describe(PICO["llama"]())
    q, k, *_ = (p for p in decoder.projections if p.block == 0)
    q1, k1, *_ = (p for p in decoder.projections if p.block == 1)
    groups = [
        Candidate(members, np.random.default_rng(0).random(7)) for members in [(q,), (k,), (q, k), (q, q1), (k1,)]
    ]
    alone, joint = (frozenset({"q"}), frozenset({"k"})), (frozenset({"q", "k"}),)
    segments = {alone[0]: {(0, 1): 0, (0, 2): 3}, alone[1]: {(0, 1): 1, (1, 2): 4}, joint[0]: {(0, 1): 2}}
    written = Candidates(groups, [Lane(2, (alone, joint), segments)])
    write_candidates(written, tmp_path / "candidates.npz")
    found = read_candidates(tmp_path / "candidates.npz", decoder)
    assert [group.members for group in found.groups] == [group.members for group in groups]
    assert all((a.losses == b.losses).all() for a, b in zip(found.groups, groups, strict=True))
    assert found.lanes == written.lanes
