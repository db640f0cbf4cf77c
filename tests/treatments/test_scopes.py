"""Lanes of blocks, and the ways to divide what reads one input."""

from itertools import chain

import pytest
import torch

from basis_sharing.models.decoder import describe
from basis_sharing.treatments.scopes import lanes_of, parts_in, scope_of, ways_to_divide
from pico import PICO


@pytest.mark.parametrize("name", PICO)
def test_lanes_hold_every_projection_once_on_one_input_in_one_shape(name: str) -> None:
    decoder = describe(PICO[name]())
    lanes = list(lanes_of(decoder.parts, decoder))
    for lane in lanes:
        assert len({p.input for p in chain(*lane)}) == 1
        assert len({tuple((decoder.path_in_block(p), p.d_in, p.d_out) for p in block) for block in lane}) == 1
        starts = [block[0].block for block in lane]
        assert starts == list(range(starts[0], starts[0] + len(lane)))
        assert all(len({p.block for p in block}) == 1 for block in lane)
    assert sorted(p.name for lane in lanes for p in chain(*lane)) == sorted(p.name for p in decoder.parts)


def test_lanes_end_where_shapes_change() -> None:
    model = PICO["llama"]()
    mlp = model.model.layers[2].mlp
    for name in ("gate_proj", "up_proj"):
        setattr(mlp, name, torch.nn.Linear(64, 48, bias=False))
    mlp.down_proj = torch.nn.Linear(48, 64, bias=False)
    assert sorted(len(lane) for lane in lanes_of(describe(model).parts, describe(model))) == [1, 1, 2, 2, 2, 2, 5, 5]


def test_all_ways_to_divide_three_roles() -> None:
    decoder = describe(PICO["llama"]())
    lanes = list(lanes_of(decoder.parts, decoder))
    ways = {len(lane[0]): ways_to_divide(lane[0], decoder) for lane in lanes}
    assert [len(ways[count]) for count in (1, 2, 3)] == [1, 2, 5]
    assert len(set(ways[3])) == 5
    q, k, v = (frozenset([f"self_attn.{role}_proj"]) for role in "qkv")
    assert {frozenset(way) for way in ways[3]} == {
        frozenset(way) for way in [(q, k, v), (q | k, v), (q | v, k), (k | v, q), (q | k | v,)]
    }
    for way in ways[3]:
        assert sorted(chain(*way)) == sorted(q | k | v)
    assert len(parts_in(ways[3])) == 7
    assert {len(ways_to_divide(lane[0], decoder, across_roles=False)) for lane in lanes} == {1}


def test_of_many_roles_only_the_finest_and_the_coarsest_way() -> None:
    decoder = describe(PICO["mixtral"]())
    for lane in lanes_of(decoder.parts, decoder):
        ways = ways_to_divide(lane[0], decoder)
        if len(lane[0]) > 4:
            assert [len(way) for way in ways] == [len(lane[0]), 1]


def test_a_scope_is_a_part_in_some_blocks() -> None:
    decoder = describe(PICO["llama"]())
    lane = next(lane for lane in lanes_of(decoder.parts, decoder) if len(lane[0]) == 3)
    part = frozenset(["self_attn.q_proj", "self_attn.v_proj"])
    scope = scope_of(part, lane[1:3], decoder)
    assert [p.name for p in scope] == [f"model.layers.{i}.self_attn.{role}_proj" for i in (1, 2) for role in "qv"]
