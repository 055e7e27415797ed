"""The output head against plain log-softmax in float64: values, gradients, and what it never makes."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from rlft.policy import head
from rlft.policy.head import LogProbHead, chosen_logp


@pytest.fixture(params=["kept", "computed again"])
def memory(request, monkeypatch):
    monkeypatch.setattr(head, "_CHUNK", 7)
    monkeypatch.setattr(head, "_KEEP_BYTES", 2**30 if request.param == "kept" else 0)


def plain(hidden, weight, actions, temperature):
    logp = torch.log_softmax(hidden @ weight.T / temperature, dim=-1)
    return logp.gather(1, actions[:, None]).squeeze(1), -(logp.exp() * logp).sum(-1)


def problem(num=17, vocabulary=11, width=5, dtype=torch.float32):
    torch.manual_seed(0)
    hidden = torch.randn(num, width, dtype=torch.float64).to(dtype).requires_grad_()
    weight = torch.randn(vocabulary, width, dtype=torch.float64).to(dtype).requires_grad_()
    return hidden, weight, torch.randint(0, vocabulary, (num,))


@pytest.mark.usefixtures("memory")
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("upstream", ["logp", "entropy", "both"])
def test_values_and_gradients_are_those_of_log_softmax(temperature, upstream):
    hidden, weight, actions = problem()
    exact = [x.detach().double().requires_grad_() for x in (hidden, weight)]
    ours = chosen_logp(hidden, weight, actions, temperature)
    theirs = plain(*exact, actions, temperature)
    scale = torch.randn(2, len(actions))
    chosen = {"logp": [0], "entropy": [1], "both": [0, 1]}[upstream]
    sum((ours[i] * scale[i]).sum() for i in chosen).backward()
    sum((theirs[i] * scale[i].double()).sum() for i in chosen).backward()
    for mine, exactly in zip(ours, theirs, strict=True):
        assert torch.allclose(mine.double(), exactly, atol=1e-5)
    for mine, exactly in zip((hidden, weight), exact, strict=True):
        assert torch.allclose(mine.grad.double(), exactly.grad, atol=5e-5)


def test_a_frozen_weight_gets_no_gradient():
    hidden, weight, actions = problem()
    weight = weight.detach()
    chosen_logp(hidden, weight, actions)[0].sum().backward()
    assert weight.grad is None
    assert hidden.grad.abs().sum() > 0


def test_the_chunking_does_not_show(monkeypatch):
    results = []
    for chunk in (3, 17, 100):
        monkeypatch.setattr(head, "_CHUNK", chunk)
        hidden, weight, actions = problem()
        logp, entropy = chosen_logp(hidden, weight, actions)
        (logp.sum() + entropy.sum()).backward()
        results.append((logp.detach(), entropy.detach(), hidden.grad, weight.grad))
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert torch.allclose(a, b, atol=1e-5)


class LargestFloat32(TorchDispatchMode):
    """Remembers the most elements of any float32 tensor made inside."""

    largest = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, torch.Tensor) and tensor.dtype == torch.float32:
                self.largest = max(self.largest, tensor.numel())
        return result


def test_no_float32_tensor_of_all_positions_by_vocabulary_is_ever_made(monkeypatch):
    monkeypatch.setattr(head, "_CHUNK", 16)
    num, vocabulary, width = 256, 1000, 8
    hidden, weight, actions = problem(num, vocabulary, width, torch.bfloat16)
    with LargestFloat32() as watch:
        chosen_logp(hidden, weight, actions)[0].sum().backward()
    assert watch.largest <= 16 * vocabulary
    assert watch.largest < num * vocabulary / 10


def test_only_trained_positions_reach_the_head(tiny_model, monkeypatch):
    from rlft.policy.lm import load_lm

    policy = load_lm(tiny_model, "float32")
    seen = []
    forward = LogProbHead.forward

    def watched(self, hidden, actions, temperature):
        seen.append(len(hidden))
        return forward(self, hidden, actions, temperature)

    monkeypatch.setattr(LogProbHead, "forward", watched)
    ids = torch.randint(4, 19, (3, 12))
    position = torch.arange(6, 12).expand(3, 6)
    mask = torch.zeros(3, 6, dtype=torch.bool)
    mask[0, :4] = mask[2, 1] = True
    logp, entropy = policy(ids, position, mask)
    assert seen == [5]
    assert (logp[~mask] == 0).all()
    assert (entropy[~mask] == 0).all()
    assert (logp[mask] < 0).all()


def test_padding_on_the_right_changes_nothing(tiny_model):
    from rlft.policy.lm import load_lm

    policy = load_lm(tiny_model, "float32")
    ids = torch.randint(4, 19, (2, 12))
    padded = torch.cat([ids, torch.zeros(2, 9, dtype=torch.int64)], dim=1)
    position = torch.arange(6, 12).expand(2, 6)
    mask = torch.ones(2, 6, dtype=torch.bool)
    for a, b in zip(policy(ids, position, mask), policy(padded, position, mask), strict=True):
        assert torch.allclose(a, b, atol=1e-6)
