import pytest
import torch

from basis_sharing.blocks.placing import placed, placed_outside
from basis_sharing.models.decoder import describe
from pico import PICO


def test_weights_are_the_same_tensors_again_afterwards() -> None:
    model = PICO["llama"]()
    before = {name: parameter.data_ptr() for name, parameter in model.named_parameters()}
    with placed(model, torch.device("cpu"), torch.bfloat16):
        assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert {name: parameter.data_ptr() for name, parameter in model.named_parameters()} == before


def test_buffers_move_and_keep_their_dtype() -> None:
    model = PICO["llama"]()
    before = dict(model.named_buffers())
    assert before
    with placed(model, torch.device("meta"), torch.bfloat16):
        assert {tensor.device.type for tensor in (*model.parameters(), *model.buffers())} == {"meta"}
        assert {buffer.dtype for buffer in model.buffers()} == {torch.float32}
    assert all(buffer is before[name] for name, buffer in model.named_buffers())


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_the_blocks_may_stay_where_they_are(name: str) -> None:
    model = PICO[name]()
    decoder = describe(model)
    with placed_outside(model, decoder, torch.device("meta"), torch.bfloat16):
        for path, tensor in (*model.named_parameters(), *model.named_buffers()):
            inside = any(path.startswith(f"{block}.") for block in decoder.blocks)
            assert tensor.device.type == ("cpu" if inside else "meta"), path
