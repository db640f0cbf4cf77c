import pytest
import torch
from transformers import DynamicCache

from basis_sharing.benchmark.workloads import Decode, FirstToken, Prefill, fill
from pico import PICO

NEW = 4


def prompts(batch=2, tokens=40):
    return torch.randint(0, 250, (batch, tokens), generator=torch.Generator().manual_seed(0))


def decoded(decode):
    decode.prepare()
    tokens = [decode._next]
    for _ in range(NEW):
        decode.turn()
        tokens.append(decode._next)
    return torch.cat(tokens, dim=1)


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma3", "opt", "gpt2"])
def test_every_repeat_decodes_what_generate_does(name):
    model, ids = PICO[name](), prompts()
    model.generation_config.eos_token_id = None
    expected = model.generate(ids, max_new_tokens=NEW + 1, do_sample=False)[:, ids.shape[1] :]
    decode = Decode(model, ids, NEW)
    assert torch.equal(decoded(decode), expected)
    assert torch.equal(decoded(decode), expected)


def test_a_static_cache_stays_where_it_is():
    model, ids = PICO["llama"](), prompts()
    decode = Decode(model, ids, NEW)
    decoded(decode)
    addresses = [layer.keys.data_ptr() for layer in decode._cache.layers]
    decoded(decode)
    assert addresses == [layer.keys.data_ptr() for layer in decode._cache.layers]


def test_filling_returns_the_next_token_and_the_cache():
    model, ids = PICO["llama"](), prompts()
    following, cache = fill(model, ids)
    assert torch.equal(following, model(ids).logits[:, -1:].argmax(-1))
    assert isinstance(cache, DynamicCache)
    assert cache.get_seq_length() == 40


def test_prefill_runs_without_a_cache_and_a_first_token_with_one():
    seen = []
    model = PICO["llama"]()
    model.register_forward_hook(
        lambda module, args, kwargs, output: seen.append((kwargs["use_cache"], output.logits.shape[1])),
        with_kwargs=True,
    )
    assert Prefill(model, prompts()).turn() > 0
    assert FirstToken(model, prompts()).turn() > 0
    assert seen == [(False, 1), (True, 1)]


def test_what_runs_may_be_another_function():
    model, seen = PICO["llama"](), []

    def forward(**inputs):
        seen.append(inputs["input_ids"].shape[1])
        return model(**inputs)

    Prefill(model, prompts(), forward).turn()
    decoded(Decode(model, prompts(), NEW, forward))
    assert seen == [40, *[1] * NEW]  # the prompt of a decoding is read by the model itself
