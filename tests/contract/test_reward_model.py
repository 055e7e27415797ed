"""A reward model in a reward process: batches score as single texts do, what was trained is what is served,
and folders that cannot serve are refused."""

import json
import pickle
import shutil
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM, LlamaForSequenceClassification

from envs.addition import build_model
from rlft.batch import assemble
from rlft.check.model_shape import served_models
from rlft.config import Model, Rewards, parse_config
from rlft.errors import ConfigError, PluginError
from rlft.policy.reward_model import load_reward_model
from rlft.policy.text import Text
from rlft.rewards.model import RewardModel
from rlft.rewards.scorer import Scorer
from rlft.types import Attempt, Row, Task

SUPPORT = Path(__file__).parents[1] / "support" / "dying_model.py"
TEXTS = ["c12,13,06=632", "h1", "", "9" * 30, "c1,2=3", "=" * 11, "h12,12,05=522"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A reward model with random weights, saved as Hugging Face saves it."""
    folder = tmp_path_factory.mktemp("reward_model")
    lm, tokenizer = build_model(0)
    lm.config.num_labels = 1
    torch.manual_seed(1)
    LlamaForSequenceClassification(lm.config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def attempts(texts, truncated=False):
    task = Task("t", "347+285=")
    return [
        (Attempt(f"a{i}", "policy", t, (), truncated=truncated), task) for i, t in enumerate(texts)
    ]


def scored(folder, calls, fn="reward_model", **keys):
    args = {"path": str(folder), "batch_size": 3}
    rewards = Rewards(fns=[{"fn": fn, "args": args}], timeout=20, **keys)
    scorer = Scorer(rewards, ["."], 120)
    try:
        return scorer.score([pickle.dumps(call) for call in calls])
    finally:
        scorer.close()


def alone(folder, text, end="<eos>"):
    """The score of one text, unpadded, by the model as Hugging Face loads it."""
    model = LlamaForSequenceClassification.from_pretrained(folder)
    _, tokenizer = build_model(0)
    ids = tokenizer("347+285=" + text).input_ids + ([tokenizer.eos_token_id] if end else [])
    with torch.no_grad():
        return float(model(torch.tensor([ids])).logits[0, 0])


def test_batches_score_as_single_texts_do_and_too_long_ones_are_invalid(folder):
    long = "1" * 60
    said = scored(folder, attempts([*TEXTS[:3], long, *TEXTS[3:]]), invalid_score=-9.0)
    outcomes = [o for i, o in enumerate(said.outcomes) if i != 3]
    expected = [alone(folder, text) for text in TEXTS]
    assert np.std(expected) > 0.01, "the texts tell nothing apart"
    assert [o.reward for o in outcomes] == pytest.approx(expected, abs=1e-5)
    assert all(o.parts == {"score": o.reward} for o in outcomes)
    refused = said.outcomes[3]
    assert (refused.kind, refused.reward) == ("invalid", -9.0)
    assert refused.reason == "longer than the 64 tokens that the reward model reads"
    assert said.restarts == 0


def test_a_process_that_dies_in_a_batch_is_replaced_and_nobody_s_score_is_lost(folder, tmp_path):
    mine = changed(folder, tmp_path)
    expected = [o.reward for o in scored(mine, attempts(TEXTS)).outcomes]
    (mine / "die").touch()
    said = scored(mine, attempts(TEXTS), fn=f"{SUPPORT}:DyingModel")
    assert said.restarts == 1
    assert [o.reward for o in said.outcomes] == pytest.approx(expected, abs=1e-5)


def test_a_cut_completion_has_no_end_of_text(folder):
    [one] = scored(folder, attempts(["c12"], truncated=True)).outcomes
    assert one.reward == pytest.approx(alone(folder, "c12", end=""), abs=1e-5)


def test_what_is_served_is_what_was_trained(folder):
    """The trained module on padded rows, and the reward on texts."""
    text = Text(folder)
    rows = []
    for said in TEXTS:
        prompt, response = text.prompt_ids("347+285="), text.response_ids(said)
        unknown = np.full(len(response), np.nan, np.float32)
        rows.append(Row(np.array([*prompt, *response], np.int32), len(prompt), unknown))
    settings = Model(path=str(folder), dtype="float32")
    policy = load_reward_model(folder, settings, pad_id=text.pad_id, seed=0)
    inputs = assemble(rows, text.pad_id)
    _, _, score_B = policy(inputs.ids, inputs.position, inputs.mask)
    served = RewardModel(str(folder))
    served.load()
    encoded = [served.encoded(*call) for call in attempts(TEXTS)]
    assert served.scores(encoded) == pytest.approx(score_B.tolist(), abs=1e-5)


def changed(folder, tmp_path, **config):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    whole = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**whole, **config}))
    return copy


def test_folders_that_cannot_serve_are_refused_with_what_to_do(folder, tmp_path):
    labels = {"id2label": {"0": "a", "1": "b", "2": "c"}, "label2id": {"a": 0, "b": 1, "c": 2}}
    with pytest.raises(ConfigError, match="3 labels, expected 1"):
        RewardModel(str(changed(folder, tmp_path / "1", **labels)))
    with pytest.raises(ConfigError, match=r"LlamaForCausalLM.*algorithm reward_model"):
        RewardModel(str(changed(folder, tmp_path / "2", architectures=["LlamaForCausalLM"])))
    bare = changed(folder, tmp_path / "3")
    for file in bare.glob("token*"):
        file.unlink()
    with pytest.raises(ConfigError, match="no tokenizer"):
        RewardModel(str(bare))
    with pytest.raises(ConfigError, match="not a Hugging Face folder"):
        RewardModel(str(tmp_path / "nothing"))
    with pytest.raises(ConfigError, match="chat template"):
        RewardModel(str(folder), form="chat")
    with pytest.raises(ConfigError, match="response, chat, pair"):
        RewardModel(str(folder), form="text")


def test_a_head_that_would_be_random_is_refused_when_it_is_loaded(tmp_path):
    """A language model's weights under a reward model's configuration: no training, no reward."""
    lm, tokenizer = build_model(0)
    LlamaForCausalLM.save_pretrained(lm, tmp_path)
    tokenizer.save_pretrained(tmp_path)
    whole = json.loads((tmp_path / "config.json").read_text())
    whole |= {"architectures": ["LlamaForSequenceClassification"], "id2label": {"0": "x"}}
    (tmp_path / "config.json").write_text(json.dumps(whole))
    with pytest.raises(PluginError, match=r"weights are missing \(score.weight\)"):
        scored(tmp_path, attempts(["1"]))


def test_training_refuses_a_classifier_and_lora(folder, tmp_path):
    labels = {"id2label": {"0": "a", "1": "b"}, "label2id": {"a": 0, "b": 1}}
    several = changed(folder, tmp_path, **labels)
    with pytest.raises(ConfigError, match="2 labels"):
        load_reward_model(several, Model(path=str(several)), pad_id=0, seed=0)
    with pytest.raises(ConfigError, match=r"remove model.lora"):
        load_reward_model(folder, Model(path=str(folder), lora={}), pad_id=0, seed=0)


def test_the_check_counts_the_weights_that_are_served(folder):
    one = {"fn": "reward_model", "args": {"path": str(folder), "batch_size": 4}}
    tree = {"name": "m", "steps": 1, "tasks_per_step": 1, "algo": "grpo", "env": "addition"}
    tree |= {
        "model": {"path": "m", "max_length": 32},
        "sampler": {"max_tokens": 8},
        "rewards": {"fns": [one]},
    }
    [served] = served_models(parse_config(tree, "here"))
    model = LlamaForSequenceClassification.from_pretrained(folder)
    actual = sum(p.numel() * p.element_size() for p in model.parameters())
    assert (served.name, served.gpus) == ("reward actor reward_model", 0.0)
    assert served.parts["reward model"] == actual
    # The largest tensors that are alive at once in a forward: of one layer, for 4 x 32 tokens.
    assert served.parts["batch of rewards"] == pytest.approx(peak(model, 4, 32), rel=0.05)


def peak(model, rows, tokens):
    """Bytes of activations that are alive at once in a forward without gradients."""
    from torch.utils._python_dispatch import TorchDispatchMode

    alive, most = [], 0

    class Counting(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal most
            out = func(*args, **(kwargs or {}))
            made = out if isinstance(out, tuple | list) else [out]
            alive[:] = [ref for ref in alive if ref() is not None]
            alive.extend(weakref.ref(t) for t in made if isinstance(t, torch.Tensor))
            storages = [t.untyped_storage() for ref in alive if (t := ref()) is not None]
            held = {s.data_ptr(): s.nbytes() for s in storages}
            most = max(most, sum(n for place, n in held.items() if place not in own))
            return out

    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    with torch.inference_mode(), Counting():
        model(torch.zeros(rows, tokens, dtype=torch.int64))
    return most
