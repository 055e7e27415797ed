"""Episodes of several turns: what an environment wrote is no decision. Losses, corrections, credit,
denominators and statistics against loops over the policy's tokens alone, and the gradient by position."""

import math
import socket
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.distributed as dist
from transformers import LlamaConfig, LlamaForCausalLM

from rlft import registry
from rlft.batch import plan
from rlft.credit.decision import GAE
from rlft.learning.appraisal import Micro, appraise
from rlft.learning.fit import FitJob, _micro, run_fit
from rlft.losses.corrected import Corrected
from rlft.losses.kl import KLToReference
from rlft.policy.lm import load_lm
from rlft.policy.text import Text
from rlft.sampling.turns import extended
from rlft.types import Completion, PolicyOut, Row, Term

LOSSES = ("ClippedSurrogate", "CISPO", "DPPO", "GMPO", "GSPO", "SAPO", "Reinforce")
V = 32


@pytest.fixture(scope="module", autouse=True)
def process_group():
    if dist.is_initialized():
        yield
        return
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    where = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "initializer_range": 0.3}
    LlamaForCausalLM(LlamaConfig(vocab_size=V, **sizes, **heads)).save_pretrained(where)
    return where


class PlainLearner:
    """A learner without DeepSpeed that keeps the gradient at each position of the last layer, which is
    that of the log-prob of the token behind it."""

    device = torch.device("cpu")

    def __init__(self, folder):
        self.policy = load_lm(folder, "float32")
        self.hidden = []
        self.policy.causal_lm().get_decoder().register_forward_hook(self._keep)
        self.seen = []

    def _keep(self, module, args, output):
        if output.last_hidden_state.requires_grad:
            output.last_hidden_state.retain_grad()
            self.hidden.append(output.last_hidden_state)

    def forward(self, ids, position, mask, temperature, packing=None, taught=None):
        assert taught is None
        if torch.is_grad_enabled():
            self.seen.append(ids)
        more = () if packing is None else (packing,)
        return PolicyOut(*self.policy(ids, position, mask, temperature, *more))

    def begin(self, step):
        """Nothing is frozen."""

    def trained_share(self):
        return None

    def backward(self, loss):
        loss.backward()

    def step(self, lr):
        with torch.no_grad():
            for weight in self.policy.parameters():
                weight.add_(weight.grad, alpha=-lr)
                weight.grad = None
        return True, 1.0


def completion(rng, num, stopped=True):
    ids = rng.integers(3, V, num).astype(np.int32)
    return Completion(ids, rng.normal(-2, 0.3, num).astype(np.float32), stopped)


def rows_of(seed, num=5):
    """Rows of one to four turns, of different lengths."""
    rng = np.random.default_rng(seed)
    rows = []
    for index in range(num):
        prompt = rng.integers(3, V, rng.integers(2, 6)).astype(np.int32)
        first = completion(rng, rng.integers(1, 5))
        row = Row(np.concatenate([prompt, first.ids]), len(prompt), first.logp)
        for _ in range(index % 4):
            said = rng.integers(3, V, rng.integers(1, 7)).tolist()
            row = extended(row, said, completion(rng, rng.integers(1, 5)))
        rows.append(row)
    return rows


def told(rows, value):
    """The same rows with another number where the environment's log-probs would be."""
    changed = []
    for row in rows:
        logp = row.sample_logp.copy()
        if row.mask is not None:
            logp[~row.mask] = value
        changed.append(Row(row.ids, row.prompt_len, logp, row.version, row.mask))
    return changed


def chosen(row):
    """Where in the row the policy's tokens are."""
    if row.mask is None:
        return list(range(row.prompt_len, len(row.ids)))
    return [row.prompt_len + t for t, own in enumerate(row.mask) if own]


def job_of(rows, terms, aggregate, *, packed=False, epochs=2, **keys):
    adv = np.linspace(-1, 1.5, len(rows)).astype(np.float32)
    lengths = [len(r.ids) for r in rows]
    return FitJob(
        updates=plan(lengths, world=1, budget=1000, epochs=epochs, packed=packed),
        **{"adv": adv, "on_policy": np.ones(len(rows), bool)},
        **{"terms": terms, "coef": (1.0,) * len(terms), "aggregate": aggregate},
        **{"max_tokens": 16, "lr": 0.02, "temperature": 1.0, "first_epoch": 1},
        packed=1000 if packed else 0,
        **keys,
    )


def fit(folder, rows, terms, aggregate="token", reference=None, **keys):
    learner = PlainLearner(folder)
    job = job_of(rows, terms, aggregate, **keys)
    held = dict(enumerate(rows))
    return learner, run_fit(learner, job, 0, held, pad_id=0, reference=reference)


def plain(inputs, temperature):
    """A reference policy: some numbers."""
    return -torch.ones(inputs.mask.shape) * 2


def terms_of(loss):
    weights = (registry.build("correction", "sequence_truncate"),)
    fn = Corrected(registry.build("loss", loss), weights)
    return (Term("policy", fn), Term("kl", KLToReference("k3"), 0.1))


# -- the gradient --------------------------------------------------------------------------------


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("loss", LOSSES)
def test_no_gradient_comes_from_a_token_that_the_environment_wrote(folder, loss, packed):
    rows = rows_of(1)
    learner, report = fit(folder, rows, terms_of(loss), packed=packed, reference=plain)
    assert math.isfinite(report.metrics["loss/policy"])
    for ids, hidden in zip(learner.seen, learner.hidden, strict=True):
        moved = hidden.grad.abs().sum(-1) > 0
        for row in rows:
            [(line, begin)] = found(ids, row.ids)
            pulled = {int(p) + 1 for p in moved[line, begin : begin + len(row.ids)].nonzero()[:, 0]}
            assert pulled <= set(chosen(row))
            # A clip takes the gradient of some; the KL term leaves one nearly everywhere.
            assert pulled
        assert int(moved.sum()) <= sum(len(chosen(row)) for row in rows)


def found(ids, row):
    """(line, first column) of every place where the row's tokens lie."""
    width = len(row)
    for line in range(ids.shape[0]):
        for begin in range(ids.shape[1] - width + 1):
            if ids[line, begin : begin + width].tolist() == row.tolist():
                yield line, begin


@pytest.mark.parametrize("aggregate", ["token", "sequence", "constant"])
@pytest.mark.parametrize("loss", LOSSES)
def test_no_number_depends_on_log_probs_of_the_environments_tokens(folder, loss, aggregate):
    rows = rows_of(2)
    _, one = fit(folder, rows, terms_of(loss), aggregate, reference=plain)
    _, other = fit(folder, told(rows, 7.0), terms_of(loss), aggregate, reference=plain)
    assert one.metrics == other.metrics


def test_rows_behind_each_other_are_learnt_from_as_rows_in_lines(folder):
    rows = rows_of(3)
    (_, padded), (_, packed) = (
        fit(folder, rows, terms_of("GSPO"), packed=p, reference=plain) for p in (False, True)
    )
    for name, value in padded.metrics.items():
        assert packed.metrics[name] == pytest.approx(value, rel=1e-4, abs=1e-6), name


# -- against loops ---------------------------------------------------------------------------------


def slow_logp(folder, row):
    """The learner's log-prob of each token of the policy, by a plain forward of that row alone."""
    lm = LlamaForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        logp = torch.log_softmax(lm(torch.tensor(row.ids[None].astype(int))).logits[0], -1)
    return [float(logp[p - 1, row.ids[p]]) for p in chosen(row)]


def engine_logp(row):
    return [float(row.sample_logp[p - row.prompt_len]) for p in chosen(row)]


@pytest.mark.parametrize("aggregate", ["token", "sequence", "constant"])
def test_loss_weights_and_mismatch_are_those_of_the_policys_tokens(folder, aggregate):
    rows = rows_of(4)
    terms = (Term("policy", Corrected(registry.build("loss", "Reinforce"), weights())),)
    _, report = fit(folder, rows, terms, aggregate, epochs=1)
    adv = np.linspace(-1, 1.5, len(rows))
    total, of_weights, gaps, count = 0.0, [], [], 0
    for row, a in zip(rows, adv, strict=True):
        ours, theirs = slow_logp(folder, row), engine_logp(row)
        rho = min(2.0, math.exp(sum(x - y for x, y in zip(ours, theirs, strict=True))))
        share = 1 / len(ours) if aggregate == "sequence" else 1.0
        total += sum(-a * logp * rho * share for logp in ours)
        of_weights += [rho] * len(ours)
        gaps += [abs(x - y) for x, y in zip(ours, theirs, strict=True)]
        count += len(ours)
    divisor = {"token": count, "sequence": len(rows), "constant": 16 * len(rows)}[aggregate]
    assert report.metrics["loss/policy"] == pytest.approx(total / divisor, rel=1e-4)
    assert report.metrics["is_weight"] == pytest.approx(np.mean(of_weights), rel=1e-4)
    assert report.metrics["mismatch/mean_logp_gap"] == pytest.approx(np.mean(gaps), rel=1e-4)
    assert report.metrics["mismatch/max_logp_gap"] == pytest.approx(max(gaps), rel=1e-4)


def weights():
    return (registry.build("correction", "sequence_truncate"),)


def test_gspo_takes_the_mean_over_the_policys_tokens(folder):
    """In a second update: the ratio of each row from the log-probs before and after the first."""
    rows = rows_of(5)
    terms = (Term("policy", Corrected(registry.build("loss", "GSPO"), ())),)
    learner = PlainLearner(folder)
    before = [slow_logp(folder, row) for row in rows]
    job = job_of(rows, terms, "sequence")
    first = job.updates[:1]
    held = dict(enumerate(rows))
    run_fit(learner, replace(job, updates=first), 0, held, pad_id=0)
    lm, ratios = learner.policy, []
    for row, old in zip(rows, before, strict=True):
        at = torch.tensor([chosen(row)])
        with torch.no_grad():
            ids = torch.tensor(row.ids[None].astype(int))
            new, _ = lm(ids, at, torch.ones_like(at, dtype=torch.bool))
        ratios += [math.exp(np.mean(new[0].numpy() - np.array(old)))] * len(old)
    again = PlainLearner(folder)
    report = run_fit(again, job, 0, held, pad_id=0)
    mean = (len(ratios) + sum(ratios)) / (2 * len(ratios))  # the first update's ratios are 1
    assert report.metrics["ratio"] == pytest.approx(mean, rel=1e-5)
    assert report.metrics["ratio"] != pytest.approx(1.0, rel=1e-5)


class Table:
    """A critic that says a number for each position of the row."""

    def forward(self, inputs):
        return torch.where(inputs.mask, torch.sin(inputs.position.float() * 1.7), 0.0)


@pytest.mark.parametrize("gamma, lam", [(1.0, 1.0), (0.9, 0.8), (0.95, 0.0)])
def test_gae_goes_from_decision_to_decision_over_what_the_environment_said(gamma, lam):
    rows = rows_of(6)
    reward = [0.5, -1.0, 2.0, 0.0, 1.0]
    micro: Micro = _micro(tuple(range(len(rows))), dict(enumerate(rows)), 0, "cpu", 0)
    appraise(GAE(gamma, lam, whiten=False), [[micro]], 1, reward, {}, Table())
    for index, row in enumerate(rows):
        value = [math.sin(p * 1.7) for p in chosen(row)]
        given = [0.0] * (len(value) - 1) + [reward[index]]
        for t in range(len(value)):
            delta = [
                given[k] + gamma * (value[k + 1] if k + 1 < len(value) else 0.0) - value[k]
                for k in range(t, len(value))
            ]
            slow = sum((gamma * lam) ** k * d for k, d in enumerate(delta))
            assert float(micro.adv[index, t]) == pytest.approx(slow, abs=1e-5)
        assert not micro.adv[index, len(value) :].any()


# -- rows ------------------------------------------------------------------------------------------


def test_a_row_grows_by_the_answer_and_the_next_turn():
    rng = np.random.default_rng(0)
    row = Row(np.array([5, 6, 7], np.int32), 2, np.array([-1.0], np.float32))
    longer = extended(row, [8, 9], completion(rng, 3))
    assert longer.ids[:5].tolist() == [5, 6, 7, 8, 9]
    assert longer.mask.tolist() == [True, False, False, True, True, True]
    assert np.isnan(longer.sample_logp[1:3]).all()
    assert not np.isnan(longer.sample_logp[longer.decisions]).any()
    assert longer.version is None


def test_versions_of_turns_are_kept_token_by_token():
    row = Row(
        np.array([5, 6, 7], np.int32), 2, np.zeros(1, np.float32), version=np.array([3], np.int32)
    )
    drawn = Completion(
        np.array([9, 9], np.int32), np.zeros(2, np.float32), True, np.array([3, 4], np.int32)
    )
    assert extended(row, [8], drawn).version.tolist() == [3, -1, 3, 4]


def test_steps_are_found_in_the_turns_that_they_end(tiny_model):
    """Turns of a text lie a line break apart; the environment's tokens are not counted."""
    from rlft.learning.rank import decision_at

    text = Text(tiny_model)
    said, own = text.dialogue_ids(("12+3", "45", "6=7", "8", "9"), None)
    row = Row(
        np.array([4, *said], np.int32), 1, np.zeros(len(said), np.float32), mask=np.array(own)
    )
    decisions = row.ids[1:][row.decisions].tolist()
    whole = "12+3\n6=7\n9"
    # The end-of-text token closes each turn, and belongs to it.
    ends = [decision_at(text, row, end) for end in (1, 4, 6, 8, len(whole))]
    assert ends == [0, 4, 5, 8, 10]
    assert text.decode(decisions[5:9]) == "6=7"
