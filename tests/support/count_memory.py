"""Run as `python count_memory.py MODEL CASES.json OUT`: bytes of tensors a learner holds after its first
step and second backward pass, for each (ZeRO stage, dtype). DeepSpeed's buckets are made negligible."""

import gc
import json
import os
import socket
import sys

import torch

from rlft.config import parse_config
from rlft.learning.learner import Learner
from rlft.policy.lm import load_lm


def main() -> None:
    model, cases, out = sys.argv[1:]
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": "0"}
    os.environ |= {"LOCAL_RANK": "0", "WORLD_SIZE": "1", "DS_ACCELERATOR": "cpu"}
    import deepspeed

    deepspeed.init_distributed("gloo", auto_mpi_discovery=False, verbose=False)
    counted = [count(model, stage, dtype) for stage, dtype in json.loads(cases)]
    with open(out, "w") as stream:
        json.dump(counted, stream)


def count(model: str, stage: int, dtype: str) -> int:
    small = {"reduce_bucket_size": 20_000, "stage3_prefetch_bucket_size": 0}
    tree = {"name": "m", "steps": 1, "tasks_per_step": 1, "algo": "grpo", "env": "addition"}
    tree |= {"model": {"path": model, "dtype": dtype}}
    tree |= {"learner": {"zero_stage": stage, "deepspeed": {"zero_optimization": small}}}
    before = held()
    learner = Learner(parse_config(tree, "here"), load_lm(model, dtype))
    for taken in (True, False):
        ids = torch.randint(0, 1000, (2, 16))
        position = torch.arange(1, 16)[None].expand(2, -1)
        mask = torch.ones_like(position, dtype=torch.bool)
        learner.backward(-learner.forward(ids, position, mask, 1.0).logp.mean())
        if taken:
            learner.step(1e-4)
    del ids, position, mask
    grads = [p.grad for p in learner.policy.parameters() if p.grad is not None]
    after = held(grads)
    learner.engine.destroy()
    return sum(size for place, size in after.items() if place not in before)


def held(more: list[torch.Tensor] | None = None) -> dict[int, int]:
    """Bytes by address of every tensor's storage; gradients have no Python object of their own."""
    gc.collect()
    tensors = [t for t in gc.get_objects() if type(t) in (torch.Tensor, torch.nn.Parameter)]
    storages = [t.untyped_storage() for t in [*tensors, *(more or [])] if t.device.type == "cpu"]
    return {s.data_ptr(): s.nbytes() for s in storages}


if __name__ == "__main__":
    main()
