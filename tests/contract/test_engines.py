"""What every engine owes, for both of ours: the same tests."""

import importlib

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from rlft.types import Request, Sampling

ENGINES = ("rlft.sampling.transformers:TransformersEngine", "rlft.sampling.vllm:VllmEngine")
TOLERANCE = 1e-4
"""Nats between an engine in float32 and a plain float32 forward; 1e-6 was measured."""


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def model(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("engine")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=128,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        initializer_range=0.2,  # far from uniform, so that a wrong token shows
        tie_word_embeddings=request.param,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    lm = LlamaForCausalLM(config)
    lm.save_pretrained(folder)
    return folder, lm.float().eval()


@pytest.fixture(scope="module", params=ENGINES, ids=["transformers", "vllm"])
def engine(request, model):
    module, name = request.param.split(":")
    made = getattr(importlib.import_module(module), name)(
        model[0], dtype="float32", max_length=96, max_batch=16
    )
    yield made
    made.load(model[1].named_parameters())


def requests(num, seed=0):
    rng = np.random.default_rng(seed)
    return [
        Request(tuple(int(i) for i in rng.integers(3, 64, rng.integers(3, 20))), seed=1000 + i)
        for i in range(num)
    ]


def plain_logp(lm, prompt, ids, temperature=1.0):
    row = torch.tensor([[*prompt, *ids]])
    with torch.no_grad():
        logp = torch.log_softmax(lm(row).logits[0, :-1] / temperature, -1)
    return logp.gather(1, row[0, 1:, None]).squeeze(1)[len(prompt) - 1 :].numpy()


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_log_probs_are_those_of_a_plain_forward(engine, model, temperature):
    asked = requests(20)
    sampling = Sampling(max_tokens=12, temperature=temperature, stop_ids=(2,))
    for request, got in zip(asked, engine.generate(asked, sampling), strict=True):
        expected = plain_logp(model[1], request.prompt_ids, got.ids.tolist(), temperature)
        assert got.logp.dtype == np.float32
        assert np.abs(got.logp - expected).max() < TOLERANCE


def test_seeds_reproduce_and_differ(engine):
    sampling = Sampling(max_tokens=10)
    prompt = (5, 6, 7)
    seeds = [Request(prompt, s) for s in (1, 2, 1, 3)]
    first, second = engine.generate(seeds, sampling), engine.generate(seeds, sampling)
    for a, b in zip(first, second, strict=True):
        assert np.array_equal(a.ids, b.ids)
        assert np.array_equal(a.logp, b.logp)
    assert np.array_equal(first[0].ids, first[2].ids), "one prompt, one seed, one completion"
    assert len({tuple(c.ids.tolist()) for c in first}) == 3


def test_it_samples_the_distribution_it_reports(engine):
    """The first token's frequencies over many seeds are its probabilities."""
    asked = [Request((9, 8, 7, 6), seed) for seed in range(1500)]
    got = engine.generate(asked, Sampling(max_tokens=1))
    counts, probability = {}, {}
    for completion in got:
        token = int(completion.ids[0])
        counts[token] = counts.get(token, 0) + 1
        probability[token] = float(np.exp(completion.logp[0]))
    for token, p in probability.items():
        spread = (p * (1 - p) / len(asked)) ** 0.5
        assert abs(counts[token] / len(asked) - p) < 5 * spread + 1 / len(asked)


def test_greedy_takes_the_likeliest(engine, model):
    for request, got in zip(
        requests(6), engine.generate(requests(6), Sampling(max_tokens=8, greedy=True)), strict=True
    ):
        row = torch.tensor([[*request.prompt_ids, *got.ids.tolist()]])
        with torch.no_grad():
            best = model[1](row).logits[0, len(request.prompt_ids) - 1 : -1].argmax(-1)
        assert best.tolist() == got.ids.tolist()


def test_stop_tokens_end_and_are_kept_and_max_tokens_truncates(engine):
    stops = tuple(range(3, 20))
    asked = requests(40)
    got = engine.generate(asked, Sampling(max_tokens=6, stop_ids=stops))
    assert {c.stopped for c in got} == {True, False}, "the case shows both endings"
    for completion in got:
        inside, last = completion.ids[:-1], completion.ids[-1]
        assert not set(inside.tolist()) & set(stops)
        assert completion.stopped == (int(last) in stops)
        assert completion.stopped or len(completion.ids) == 6
        assert len(completion.logp) == len(completion.ids)


def test_no_stop_token_before_min_tokens(engine):
    stops = tuple(range(3, 40))
    got = engine.generate(requests(20), Sampling(max_tokens=6, min_tokens=4, stop_ids=stops))
    for completion in got:
        assert len(completion.ids) >= 5
        assert not set(completion.ids[:4].tolist()) & set(stops)


def test_more_requests_than_the_batch_keep_their_order(engine, model):
    asked = requests(50, seed=3)
    together = engine.generate(asked, Sampling(max_tokens=5, greedy=True))
    for index in (0, 17, 49):
        alone = engine.generate([asked[index]], Sampling(max_tokens=5, greedy=True))[0]
        assert alone.ids.tolist() == together[index].ids.tolist()
    assert engine.progress() == (1, 1)


def test_score_is_the_forward_and_follows_the_weights(engine, model):
    """Also of a tied output head, which vLLM's CPU build keeps a packed copy of."""
    ids = (*requests(1)[0].prompt_ids, 4, 5, 6)
    before = engine.score(list(ids))
    assert np.abs(before - plain_logp(model[1], ids[:1], ids[1:])).max() < TOLERANCE
    changed = LlamaForCausalLM(model[1].config).float().eval()
    engine.load(changed.named_parameters())
    after = engine.score(list(ids))
    engine.load(model[1].named_parameters())
    assert np.abs(after - plain_logp(changed, ids[:1], ids[1:])).max() < TOLERANCE
    assert np.abs(after - before).max() > 0.05
    assert np.array_equal(engine.score(list(ids)), before)


@pytest.mark.parametrize("limits", [{"top_k": 3}, {"top_p": 0.5}])
def test_truncated_sampling_reports_the_renormalised_probability(engine, limits):
    got = engine.generate(
        [Request((9, 8, 7, 6), s) for s in range(200)], Sampling(max_tokens=1, **limits)
    )
    seen = {int(c.ids[0]): float(np.exp(c.logp[0])) for c in got}
    assert len(seen) <= limits.get("top_k", 64)
    assert sum(seen.values()) == pytest.approx(1, abs=0.05)
