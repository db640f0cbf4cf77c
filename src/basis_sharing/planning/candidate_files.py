"""Measured candidates as a file, for the next plan of the same model."""

import json
from pathlib import Path

import numpy as np

from basis_sharing.models.family import Decoder
from basis_sharing.planning.allocation import Lane
from basis_sharing.planning.candidates import Candidate, Candidates


def write_candidates(candidates: Candidates, path: Path) -> None:
    """Write candidates as an ``.npz`` file: their losses one after the other, and their structure as JSON."""
    groups = [{"members": [p.name for p in g.members], "losses": len(g.losses)} for g in candidates.groups]
    lanes = []
    for lane in candidates.lanes:
        parts = list(lane.segments)
        lanes.append(
            {
                "length": lane.length,
                "parts": [sorted(part) for part in parts],
                "partitions": [[parts.index(part) for part in partition] for partition in lane.partitions],
                "segments": [[[*span, index] for span, index in lane.segments[part].items()] for part in parts],
            }
        )
    structure = json.dumps({"groups": groups, "lanes": lanes})
    losses = np.concatenate([group.losses for group in candidates.groups])
    np.savez(path, losses=losses, structure=np.array(structure))


def read_candidates(path: Path, decoder: Decoder) -> Candidates:
    """Read candidates that were written for a model of this structure."""
    known = {p.name: p for p in decoder.projections}
    with np.load(path, allow_pickle=False) as file:
        losses, structure = file["losses"], json.loads(str(file["structure"]))
    lengths = [group["losses"] for group in structure["groups"]]
    groups = [
        Candidate(tuple(known[name] for name in group["members"]), curve)
        for group, curve in zip(structure["groups"], np.split(losses, np.cumsum(lengths)[:-1]), strict=True)
    ]
    lanes = []
    for lane in structure["lanes"]:
        parts = [frozenset(part) for part in lane["parts"]]
        lanes.append(
            Lane(
                length=lane["length"],
                partitions=tuple(tuple(parts[i] for i in partition) for partition in lane["partitions"]),
                segments={
                    part: {(start, stop): index for start, stop, index in spans}
                    for part, spans in zip(parts, lane["segments"], strict=True)
                },
            )
        )
    return Candidates(groups, lanes)
