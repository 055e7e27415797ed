"""Packed rows: the plan, where tokens lie, and log-probs and gradients equal to those of rows alone."""

import random

import numpy as np
import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from rlft.batch import assemble, plan
from rlft.errors import ConfigError
from rlft.policy import lm as policy_file
from rlft.policy.head import LogProbHead
from rlft.policy.lm import LMPolicy, refuse_mixing
from rlft.seeding import Key
from rlft.types import Row

SMALL = {"vocab_size": 60, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
PAD = 59


def rows_of(lengths, seed=0):
    rng = np.random.default_rng(seed)
    made = []
    for n in lengths:
        prompt = int(rng.integers(1, n))
        logp = np.zeros(n - prompt, np.float32)
        made.append(Row(rng.integers(0, PAD, n).astype(np.int32), prompt, logp))
    return made


@pytest.mark.parametrize("world, minibatches", [(1, 1), (2, 1), (3, 2)])
def test_every_row_is_planned_once_within_the_budget_and_little_is_padded(world, minibatches):
    rng = random.Random(1)
    lengths = [rng.randint(20, 400) for _ in range(300)]
    asked = {"world": world, "budget": 4096, "minibatches": minibatches, "key": Key(0)}
    updates = plan(lengths, packed=True, **asked)
    assert sorted(r for u in updates for r in u.rows) == list(range(300))

    def laid_out(updates, packed):
        rows = [Row(np.zeros(n, np.int32), n - 1, np.zeros(1, np.float32)) for n in lengths]
        micros = [m for u in updates for rank in u.ranks for m in rank if m]
        sizes = [assemble([rows[i] for i in m], PAD, packed).ids.numel() for m in micros]
        assert max(sizes) <= 4096
        return sum(sizes)

    padded = [
        laid_out(u, p) - sum(lengths) for u, p in ((updates, 4096), (plan(lengths, **asked), 0))
    ]
    assert 0 <= padded[0] < 0.6 * padded[1]


def test_where_the_tokens_of_packed_rows_lie():
    rows = rows_of([7, 4, 3, 2])
    inputs = assemble(rows, PAD, packed=9)
    assert inputs.packing is not None and inputs.ids.shape == (2, 9)
    sequence, within = inputs.packing
    assert sequence.tolist() == [0, 1, 1, 0]
    assert within.tolist() == [[0, 1, 2, 3, 4, 5, 6, 0, 1], [0, 1, 2, 3, 0, 1, 2, 0, 1]]
    for place, row in enumerate(rows):
        chosen = inputs.ids[sequence[place], inputs.position[place][inputs.mask[place]]]
        assert chosen.tolist() == row.ids[row.prompt_len :].tolist()
    assert assemble(rows, PAD, packed=99).ids.shape == (2, 14)
    assert assemble([], PAD, packed=9).packing is None


def models():
    yield "llama", LlamaForCausalLM(LlamaConfig(**SMALL, **HEADS))
    yield (
        "qwen2 with a window",
        Qwen2ForCausalLM(
            Qwen2Config(
                **SMALL, **HEADS, use_sliding_window=True, sliding_window=5, max_window_layers=1
            )
        ),
    )
    yield "gpt2", GPT2LMHeadModel(
        GPT2Config(
            vocab_size=60, n_embd=32, n_layer=2, n_head=4, n_positions=64, resid_pdrop=0.0,
            embd_pdrop=0.0, attn_pdrop=0.0,
        )
    )  # fmt: skip


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_packed_rows_have_the_log_probs_and_gradients_of_rows_alone(attention, monkeypatch):
    monkeypatch.setattr(policy_file, "_SHORT", 512 if attention == "eager" else 0)
    rows = rows_of([9, 30, 4, 17, 2, 30, 11, 5, 8])
    rows.sort(key=lambda row: -len(row.ids))  # as `plan` has them
    torch.manual_seed(0)
    for name, model in models():
        model.lm_head = LogProbHead(model.lm_head.weight)
        policy = LMPolicy(model)

        def learnt(batches, policy=policy):
            policy.zero_grad()
            said = []
            for rows, packed in batches:
                inputs = assemble(rows, PAD, packed)
                where = (inputs.ids, inputs.position, inputs.mask, 1.0)
                logp, entropy = policy(*where, inputs.packing)
                (-logp - 0.1 * entropy).sum().backward()
                said += [logp[i][inputs.mask[i]].detach() for i in range(len(rows))]
            return torch.cat(said), [p.grad.clone() for p in policy.parameters()]

        logp, grads = learnt([(rows, 64)])
        expected, expected_grads = learnt([([row], 0) for row in rows])
        assert assemble(rows, PAD, 64).ids.shape == (2, 60), "nine rows in two sequences"
        torch.testing.assert_close(logp, expected, rtol=0, atol=1e-5, msg=name)
        for ours, theirs in zip(grads, expected_grads, strict=True):
            largest = theirs.abs().max()
            assert (ours - theirs).abs().max() <= 1e-4 * largest + 1e-7, name


def test_a_model_whose_state_runs_along_a_sequence_is_refused():
    config = LlamaConfig(**SMALL, **HEADS)
    refuse_mixing(config)
    config.layer_types = ["linear_attention", "full_attention"]
    with pytest.raises(ConfigError, match=r"linear_attention.*algo\.packing=false"):
        refuse_mixing(config)
