"""What rows share is read once, and every row says what it says alone."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from rlft.learning.noise import Drawing, Noise
from rlft.sampling.low_rank import linear_weights
from rlft.sampling.prefill import prefill
from rlft.sampling.transformers import TransformersEngine
from rlft.types import Request, Sampling

TEMPLATE = (9, 8, 7, 6, 5, 4)
PROMPTS = [(*TEMPLATE, 11), (*TEMPLATE, 12, 13, 14, 15), (*TEMPLATE, 12, 13), (*TEMPLATE, 11)]


@pytest.fixture
def model(tiny_model):
    lm = AutoModelForCausalLM.from_pretrained(str(tiny_model), dtype=torch.float32)
    return lm.eval().requires_grad_(False)


@pytest.fixture
def positions(model):
    """How many (row, column) places the model was asked to read, a forward each."""
    seen = []
    model.get_input_embeddings().register_forward_hook(lambda _, args, out: seen.append(args[0]))
    return seen


def read(model, prompts, owners=None):
    return prefill(model, prompts, owners or [0] * len(prompts), lambda rows: None)


def alone(model, prompt, more=()):
    return model(torch.tensor([[*prompt, *more]])).logits[0, -1]


@pytest.mark.parametrize(
    "prompts",
    [
        PROMPTS,
        PROMPTS[:1] * 3,
        PROMPTS[1:2],
        [(5,), (5, 6, 7), (5,)],
        [(3, 4, 5), (3, 4), (3,)],
        [(3, 4), (5, 6, 7, 8)],
        [TEMPLATE, PROMPTS[0]],
    ],
    ids=["template", "one prompt", "one row", "no rest", "nested", "nothing shared", "prefix"],
)
def test_rows_are_what_they_are_alone_now_and_a_token_later(model, prompts):
    got = read(model, prompts)
    want = torch.stack([alone(model, p) for p in prompts])
    torch.testing.assert_close(got.logits, want, rtol=1e-4, atol=1e-5)
    assert got.position.squeeze(1).tolist() == [len(p) - 1 for p in prompts]
    assert got.attention.sum(1).tolist() == [len(p) for p in prompts]
    after = model(
        input_ids=torch.full((len(prompts), 1), 17),
        attention_mask=torch.cat([got.attention, torch.ones(len(prompts), 1).long()], 1),
        position_ids=got.position + 1,
        past_key_values=got.cache,
    ).logits[:, -1]
    want = torch.stack([alone(model, p, (17,)) for p in prompts])
    torch.testing.assert_close(after, want, rtol=1e-4, atol=1e-5)


def test_the_template_is_read_once_and_each_prompt_once(model, positions):
    read(model, PROMPTS * 4)
    assert [tuple(ids.shape) for ids in positions] == [(1, len(TEMPLATE)), (3, 4)]


def test_a_model_with_a_window_of_attention_gets_no_gaps(model, positions, monkeypatch):
    """Padding between tokens would take places of the window; equal prompts are still read once."""
    monkeypatch.setattr("rlft.sampling.prefill._takes_gaps", lambda model, cache: False)
    got = read(model, PROMPTS)
    assert [tuple(ids.shape) for ids in positions] == [(3, 10)]
    want = torch.stack([alone(model, p) for p in PROMPTS])
    torch.testing.assert_close(got.logits, want, rtol=1e-4, atol=1e-5)


def test_members_share_nothing_but_what_is_their_own(tiny_model):
    engine = TransformersEngine(tiny_model, dtype="float32", max_length=64, max_batch=64)
    seen = []
    engine._model.get_input_embeddings().register_forward_hook(
        lambda _, args, out: seen.append(tuple(args[0].shape))
    )
    drawing = Drawing(rank=1, matrices=linear_weights(tiny_model))
    members = [Noise(1, 0.3), Noise(2, 0.3), Noise(1, -0.3)]
    requests = [Request(p, 0, m) for m in range(3) for p in PROMPTS]
    sampling = Sampling(max_tokens=3, greedy=True)
    together = engine.generate_members(requests, sampling, members, drawing)
    assert seen[:2] == [(3, len(TEMPLATE)), (9, 4)]
    for at, member in enumerate(members):
        own = [Request(p, 0) for p in PROMPTS]
        one = engine.generate_members(own, sampling, [member], drawing)
        for row, want in zip(together[at * len(PROMPTS) :], one, strict=False):
            assert row.ids.tolist() == want.ids.tolist()
            torch.testing.assert_close(
                torch.tensor(row.logp), torch.tensor(want.logp), rtol=1e-4, atol=1e-5
            )


def test_models_that_count_padding_are_noticed(model):
    from transformers import DynamicCache, Gemma3TextConfig, MptConfig

    from rlft.sampling.prefill import _takes_gaps

    assert _takes_gaps(model, DynamicCache(config=model.config))
    windows = Gemma3TextConfig(num_hidden_layers=2, layer_types=["sliding_attention"] * 2)
    assert not _takes_gaps(model, DynamicCache(config=windows))
    torch.manual_seed(0)
    config = MptConfig(d_model=32, n_heads=2, n_layers=2, vocab_size=32, max_seq_len=64)
    alibi = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    assert not _takes_gaps(alibi, DynamicCache(config=alibi.config))
    want = torch.stack([alone(alibi, p) for p in PROMPTS])
    torch.testing.assert_close(read(alibi, PROMPTS).logits, want, rtol=1e-4, atol=1e-5)


def test_a_cache_whose_rows_cannot_be_copied_reads_every_row(model, positions, monkeypatch):
    monkeypatch.setattr("rlft.sampling.prefill._copies", lambda cache: False)
    monkeypatch.setattr("rlft.sampling.prefill._takes_gaps", lambda model, cache: False)
    got = read(model, PROMPTS)
    assert [tuple(ids.shape) for ids in positions] == [(4, 10)] and len(got.logits) == 4
