"""The memory estimate against what DeepSpeed and a model really hold, counted tensor by tensor."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rlft.check.memory import activations, learner_need
from rlft.check.model_shape import model_shape
from rlft.config import parse_config

SCRIPT = Path(__file__).parents[1] / "support" / "count_memory.py"
CASES = [(stage, dtype) for dtype in ("float32", "bfloat16") for stage in (0, 1, 2, 3)]


def config(folder, **sections):
    tree = {"name": "m", "steps": 1, "tasks_per_step": 1, "algo": "grpo", "env": "addition"}
    tree["model"] = {"path": str(folder), "max_length": 300, **sections.get("model", {})}
    tree["learner"] = {"lr": 1e-4, **sections.get("learner", {})}
    return parse_config(tree, "here")


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """1.2M parameters in four layers."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("llama")
    shape = {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=1000, **shape, **heads)).save_pretrained(folder)
    return folder


@pytest.mark.long
def test_what_a_learner_holds_at_each_zero_stage(llama, tmp_path):
    out = tmp_path / "counted.json"
    argv = [sys.executable, str(SCRIPT), str(llama), json.dumps(CASES), str(out)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    for (stage, dtype), counted in zip(CASES, json.loads(out.read_text()), strict=True):
        cfg = config(llama, model={"dtype": dtype}, learner={"zero_stage": stage})
        shape = model_shape(cfg)
        need = learner_need(cfg, shape, reference=False)
        held = need.idle + need.passing["gradients"]
        assert counted == pytest.approx(held, rel=0.08), (stage, dtype)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_what_a_model_keeps_for_its_backward_pass(llama, dtype, checkpointing):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(llama, dtype=getattr(torch, dtype)).train()
    if checkpointing:
        model.gradient_checkpointing_enable()
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept, held = {}, []

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
            held.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model.get_decoder()(input_ids=torch.randint(0, 1000, (2, 150)), use_cache=False)
    given = {"dtype": dtype, "gradient_checkpointing": checkpointing}
    cfg = config(llama, model=given, learner={"token_budget": 300})
    shape = model_shape(cfg)
    # Two depths tell what one layer adds: the estimate has one more, for what passes through.
    whole = config(llama, model={"dtype": dtype}, learner={"token_budget": 300})
    layer = activations(whole, replace(shape, layers=1)) - activations(
        whole, replace(shape, layers=0)
    )
    assert sum(kept.values()) == pytest.approx(activations(cfg, shape) - layer, rel=0.05)
