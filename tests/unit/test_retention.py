"""Retention terms: what each must do whatever it is used with."""

import copy
import json
import shutil
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from gymnasium import spaces
from small_runs import tree

from rlft import registry
from rlft.config import parse_config
from rlft.errors import ConfigError, DataError
from rlft.learning.anchored import Anchored
from rlft.learning.buffer import Buffer
from rlft.learning.control_rank import critic_only
from rlft.learning.retained import Retained, coefs
from rlft.learning.shards import Intercept, shards_of
from rlft.learning.teacher import ActingTeacher
from rlft.losses.anchor import penalty, pull
from rlft.losses.teacher import KLToTeacher
from rlft.policy.actor_critic import ActorCritic, new_policy
from rlft.policy.distributions import Categoricals, Gaussian
from rlft.probes.text import TextForgetting
from rlft.retention import EWC, L2, BehaviouralCloning, Kickstarting
from rlft.retention.fisher import (
    Fisher,
    fisher_of_policy,
    fisher_of_texts,
    fits,
    of_choice,
    read_fisher,
    write_fisher,
)
from rlft.retention.memory import Memory
from rlft.retention.term import check_retention
from rlft.retention.text_replay import TextReplay
from rlft.retention.texts import token_lists
from rlft.schedule import Decay, at_update
from rlft.seeding import Key
from rlft.types import Batch, PolicyOut, Strip

OBS = spaces.Box(-1, 1, (3,))
ACTIONS = spaces.Discrete(4)


def policy(seed=0, *, memory=0, actions=ACTIONS, shared=False):
    torch.manual_seed(seed)
    made = ActorCritic(OBS, actions, width=8, memory=memory, shared=shared)
    with torch.no_grad():
        made.policy_head.weight.normal_(0, 0.7)  # orthogonal with gain 0.01: nearly uniform
    return made


def strip(seed, steps, *, slot=-1, continues=False, actions=1):
    rng = np.random.default_rng(seed)
    numbers = np.zeros(steps, np.float32)
    obs = rng.uniform(-1, 1, (steps, 3)).astype(np.float32)
    return Strip(
        {"observation": obs},
        rng.integers(0, 4, (steps, actions)).astype(np.float32),
        np.zeros((steps, 4), np.float32),
        *(numbers, numbers, numbers, 0.0, None, {}),
        slot=slot,
        continues=continues,
    )  # fmt: skip


def batch_of(mask):
    zeros = torch.zeros(mask.shape)
    return Batch(mask, mask.float(), zeros, zeros, zeros, mask.any(1))


class Student:
    """What a buffer asks of a learner, without DeepSpeed. rows: what it was shown."""

    world = 1
    device = torch.device("cpu")

    def __init__(self, module):
        self.policy, self.seen = module, []
        self.state_size = module.state_size

    def forward(self, obs, state, action, behaviour, teacher=None, **_):
        self.seen.append(obs["observation"])
        params, value = self.policy(obs, state)
        d = self.policy.distribution
        kl = d.kl(teacher, params)
        return PolicyOut(d.logp(params, action), d.entropy(params), value, teacher_kl=kl)

    def backward(self, loss):
        loss.backward()


# -- KL to a teacher -----------------------------------------------------------------------------


def test_the_kl_is_that_of_the_teacher_to_the_policy_and_not_the_other():
    p = torch.tensor([0.7, 0.2, 0.1]).log()
    q = torch.tensor([0.2, 0.5, 0.3]).log()
    there = Categoricals((3,)).kl(p, q)
    by_hand = 0.7 * np.log(0.7 / 0.2) + 0.2 * np.log(0.2 / 0.5) + 0.1 * np.log(0.1 / 0.3)
    assert float(there) == pytest.approx(by_hand, rel=1e-5)
    assert float(Categoricals((3,)).kl(q, p)) != pytest.approx(by_hand, rel=0.05)


def test_the_kl_is_never_negative_and_0_with_zero_gradient_at_the_teacher():
    torch.manual_seed(0)
    p = torch.randn(50, 6)
    d = Categoricals((4, 2))
    assert float(d.kl(p, torch.randn(50, 6)).min()) > -1e-6
    q = p.clone().requires_grad_()
    kl = d.kl(p, q)
    kl.sum().backward()
    assert float(kl.detach().abs().max()) < 1e-6
    assert float(q.grad.abs().max()) < 1e-6


def test_masked_steps_are_out_before_the_mean_with_zero_gradient():
    kl = torch.tensor([[1.0, float("nan")], [2.0, 3.0]], requires_grad=True)
    mask = torch.tensor([[True, False], [True, True]])
    blank = torch.zeros(2, 2)
    loss = KLToTeacher()(PolicyOut(blank, blank, teacher_kl=kl), batch_of(mask))
    (loss.sum() / mask.sum()).backward()
    assert float((loss.sum() / mask.sum()).detach()) == pytest.approx(2.0)
    assert torch.equal(kl.grad, torch.tensor([[1.0, 0.0], [1.0, 1.0]]) / 3)
    with pytest.raises(ValueError, match="evaluate a teacher first"):
        KLToTeacher()(PolicyOut(blank, blank), batch_of(mask))


# -- the teacher ---------------------------------------------------------------------------------


def test_a_teacher_gets_no_gradient_and_belongs_to_no_student():
    teacher, student = ActingTeacher(policy(1), torch.device("cpu")), policy(0)
    said = teacher.params([strip(0, 5)])
    assert not said.requires_grad
    assert not teacher.policy.training
    assert not any(p.requires_grad for p in teacher.policy.parameters())
    held = {id(p) for p in student.parameters()}
    assert not held & {id(p) for p in teacher.policy.parameters()}
    assert set(student.state_dict()) == set(policy(0).state_dict()), "nothing is added to it"


def test_a_teacher_s_memory_runs_through_strips_and_is_reset_on_done():
    module = policy(1, memory=6)
    obs = np.random.default_rng(0).uniform(-1, 1, (9, 3)).astype(np.float32)

    def whole(part):
        with torch.no_grad():
            return module({"observation": torch.from_numpy(part)[None]}, torch.zeros(1, 6))[0][0]

    def piece(a, b, *, continues):
        blank = np.zeros(b - a, np.float32)
        return Strip({"observation": obs[a:b]}, blank, blank, blank, blank, blank, 0.0, None, {},
                     slot=3, continues=continues)  # fmt: skip

    teacher = ActingTeacher(module, torch.device("cpu"))
    # An episode of 2 steps that ends, then 3 steps of the next one, cut by the end of the segment.
    first = teacher.params([piece(0, 2, continues=False), piece(2, 5, continues=False)])
    torch.testing.assert_close(first[:2], whole(obs[:2]))
    torch.testing.assert_close(first[2:], whole(obs[2:5]), msg="it was not reset on done")
    later = teacher.params([piece(5, 9, continues=True)])
    torch.testing.assert_close(later, whole(obs[2:9])[3:], msg="it was not carried on")
    alone = ActingTeacher(module, torch.device("cpu")).params([piece(5, 9, continues=False)])
    assert not torch.allclose(alone, later)
    # All at once, as windows of a stream come: the second goes on from the first of the same call.
    teacher = ActingTeacher(module, torch.device("cpu"))
    parts = [
        piece(0, 3, continues=False),
        piece(3, 7, continues=True),
        piece(7, 9, continues=False),
    ]
    torch.testing.assert_close(teacher.params(parts)[:7], whole(obs[:7]))
    torch.testing.assert_close(teacher.params([piece(0, 2, continues=True)])[1:],
                               whole(np.concatenate([obs[7:9], obs[:2]]))[3:])  # fmt: skip


def test_a_teacher_with_a_memory_is_not_asked_from_the_middle_of_an_episode():
    vine = copy.copy(strip(0, 3))
    object.__setattr__(vine, "state", np.ones(6, np.float32))
    teacher = ActingTeacher(policy(1, memory=6), torch.device("cpu"))
    with pytest.raises(ConfigError, match="leave kickstarting out"):
        teacher.params([vine])


@pytest.mark.parametrize(
    "trainable", ["s2ft", "selective_lora", {"name": "peft", "config": "VeraConfig"}]
)
def test_ewc_is_refused_where_only_added_weights_are_trained(trainable, tmp_path, tiny_model):
    texts = tmp_path / "texts.jsonl"
    texts.write_text('{"text": "1+1=c2"}\n')
    cfg = parse_config(tree(tiny_model, learner={"trainable": trainable}), "here")
    with pytest.raises(ConfigError, match="only added ones are trained; use l2"):
        EWC(path=str(texts)).check(cfg, None, acts=False)
    EWC(path=str(texts)).check(parse_config(tree(tiny_model), "here"), None, acts=False)
    with pytest.raises(DataError, match=r"gone\.jsonl"):
        EWC(path=str(tmp_path / "gone.jsonl")).check(
            parse_config(tree(tiny_model), "here"), None, acts=False
        )


def test_a_fisher_of_other_weights_holds_nothing_and_is_refused(tmp_path):
    from rlft.learning.retained import anchored

    path, ones = tmp_path / "f.safetensors", {"elsewhere": torch.ones(2)}
    twos = {"elsewhere": torch.full((2,), 2.0)}
    write_fisher(path, Fisher(ones, twos, {}))
    named = policy(0).named_parameters()
    with pytest.raises(ConfigError, match="nothing that it could hold"):
        anchored(None, EWC(fisher=str(path)), named)


def test_a_teacher_s_memory_is_in_the_checkpoint_and_its_weights_are_not(tmp_path):
    kept = Retained()
    kept.teacher = ActingTeacher(policy(1, memory=6), torch.device("cpu"))
    kept.teacher.params([strip(0, 4, slot=2)])
    kept.save(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["teacher_state.pkl"]
    again = Retained()
    again.teacher = ActingTeacher(policy(1, memory=6), torch.device("cpu"))
    again.load(tmp_path)
    after = strip(1, 4, slot=2, continues=True)
    torch.testing.assert_close(again.teacher.params([after]), kept.teacher.params([after]))


# -- the buffer ----------------------------------------------------------------------------------


@pytest.mark.parametrize("memory", [0, 6])
def test_cloning_learns_from_the_buffer_s_states_and_is_0_at_the_teacher(memory):
    strips = [strip(i, 20 + i) for i in range(3)]
    module = policy(1, memory=memory)
    teacher = ActingTeacher(policy(1, memory=memory), torch.device("cpu"))
    term = BehaviouralCloning("unread", batch=64, unroll=8, burn_in=40)
    buffer = Buffer(term, strips, teacher, Key(0))
    student = Student(module)
    value = buffer.backward(student, 2.0, 5, 0)
    known = {row.tobytes() for s in strips for row in s.obs["observation"]}
    seen = student.seen[0].reshape(-1, 3).numpy()
    assert all(row.tobytes() in known for row in seen), "a state is not of the buffer"
    assert value == pytest.approx(0, abs=1e-6)
    grads = {n: p.grad for n, p in module.named_parameters() if p.grad is not None}
    assert max(float(g.abs().max()) for g in grads.values()) < 1e-6
    other = Student(policy(2, memory=memory))
    assert buffer.backward(other, 1.0, 5, 0) > 0.01
    again = Student(policy(2, memory=memory))
    buffer.backward(again, 1.0, 5, 0)
    assert torch.equal(again.seen[0], other.seen[0]), "a draw depends on the count alone"
    buffer.backward(again, 1.0, 6, 0)
    assert again.seen[1].shape != other.seen[0].shape or not torch.equal(
        again.seen[1], other.seen[0]
    )


def test_cloning_has_the_gradient_of_its_coefficient_times_the_mean():
    strips = [strip(0, 12)]
    teacher = ActingTeacher(policy(1), torch.device("cpu"))
    buffer = Buffer(BehaviouralCloning("unread", batch=8), strips, teacher, Key(0))
    ours = Student(policy(2))
    buffer.backward(ours, 3.0, 0, 0)
    plain = policy(2)
    obs = {"observation": ours.seen[0].flatten(0, 1)}
    p, q = teacher.policy.act(obs, None)[0], plain.act(obs, None)[0]
    logp, logq = p.log_softmax(-1), q.log_softmax(-1)
    (3.0 * (logp.exp() * (logp - logq)).sum(-1).mean()).backward()
    for (name, a), b in zip(ours.policy.named_parameters(), plain.parameters(), strict=True):
        if a.grad is not None:
            expected = torch.zeros_like(a) if b.grad is None else b.grad
            torch.testing.assert_close(a.grad, expected, msg=name)


@pytest.mark.parametrize("memory", [0, 6])
def test_a_budget_cuts_a_draw_into_forwards_and_changes_nothing(memory):
    strips = [strip(i, 20 + i) for i in range(3)]
    term = BehaviouralCloning("unread", batch=48, unroll=8, burn_in=4)

    def learnt(budget, world=1):
        teacher = ActingTeacher(policy(1, memory=memory), torch.device("cpu"))
        buffer, value, students = Buffer(term, strips, teacher, Key(0), budget), 0.0, []
        total = Student(policy(2, memory=memory))
        for rank in range(world):
            student = Student(total.policy)
            student.world = world
            value += buffer.backward(student, 1.0, 5, rank)
            students.append(student)
        grads = {n: p.grad for n, p in total.policy.named_parameters() if p.grad is not None}
        return value, grads, [s.seen for s in students]

    value, grads, _ = learnt(None)
    for budget, world in ((15, 1), (15, 2), (100, 5), (1, 1)):
        ours, theirs, seen = learnt(budget, world)
        assert ours == pytest.approx(value, rel=1e-5)
        for name, grad in grads.items():
            torch.testing.assert_close(theirs[name], grad, rtol=1e-4, atol=1e-6)
        assert len({len(forwards) for forwards in seen}) == 1, "as many on each rank"
        steps = max(x.shape[0] * x.shape[1] for forwards in seen for x in forwards)
        assert steps <= max(budget, 12 if memory else 1)


def test_a_memory_s_window_is_warmed_up_by_the_steps_before_it():
    """With a burn-in that reaches the episode's start, the loss is that of the whole episode's states."""
    episode, module = strip(0, 30), policy(1, memory=6)
    teacher = ActingTeacher(policy(3, memory=6), torch.device("cpu"))
    term = BehaviouralCloning("unread", batch=4, unroll=4, burn_in=30)
    buffer = Buffer(term, [episode], teacher, Key(0))
    value = buffer.backward(Student(module), 1.0, 0, 0)
    [(window, skip)] = buffer._windows(Student(module), Key(0).child(0))
    obs = {"observation": torch.from_numpy(episode.obs["observation"])[None]}
    with torch.no_grad():
        p, q = (m(obs, torch.zeros(1, 6))[0][0] for m in (teacher.policy, module))
    learnt = window[skip:]
    assert len(learnt) == 4
    assert value == pytest.approx(float(Categoricals((4,)).kl(p, q)[learnt].mean()), rel=1e-4)


def test_kickstarting_reads_the_rollout_and_cloning_does_not():
    assert Kickstarting().term().module == "policy"
    assert "teacher" in Kickstarting().term().needs
    assert BehaviouralCloning("x").term().module == "buffer"
    assert not BehaviouralCloning("x").term().needs


# -- weights -------------------------------------------------------------------------------------


def engine_of(module, lr=1.0):
    optimizer = torch.optim.SGD(module.parameters(), lr=lr)
    return SimpleNamespace(basic_optimizer=optimizer, optimizer=optimizer)


def test_the_penalty_has_the_gradient_2cf_times_the_distance():
    torch.manual_seed(0)
    theta, anchor, fisher = torch.randn(7).requires_grad_(), torch.randn(7), torch.rand(7)
    (3.0 * penalty(theta, anchor, fisher)).backward()
    torch.testing.assert_close(theta.grad, 2 * 3.0 * fisher * (theta.detach() - anchor))
    torch.testing.assert_close(pull(theta.detach(), anchor, fisher, 3.0), theta.grad)
    assert float(penalty(anchor, anchor, fisher)) == 0
    assert float(pull(anchor, anchor, fisher, 3.0).abs().max()) == 0
    one = torch.ones(7)
    torch.testing.assert_close(pull(theta.detach(), anchor), pull(theta.detach(), anchor, one))


def test_the_pull_is_added_to_what_the_optimizer_steps_and_leaves_a_critic_alone():
    module = policy(0)
    alone = critic_only(module, {"observation": np.zeros((1, 3), np.float32)})
    assert {n.split(".")[0] for n in alone} == {"value_encoder", "value_head"}
    engine = engine_of(module)
    named = [(n, p) for n, p in module.named_parameters() if n not in alone]
    kept = Anchored(shards_of(engine, named), intercept := Intercept(engine))
    kept.coef = 0.25
    assert intercept.before
    before = {n: p.detach().clone() for n, p in module.named_parameters()}
    with torch.no_grad():
        for p in module.parameters():
            p.add_(1.0)
            p.grad = torch.zeros_like(p)
    assert kept.value() == pytest.approx(sum(p.numel() for _, p in named))
    engine.optimizer.step()
    for name, p in module.named_parameters():
        step = 1.0 if name in alone else 1.0 - 2 * 0.25
        torch.testing.assert_close(p.detach(), before[name] + step, msg=name)


def test_with_a_shared_trunk_only_the_value_s_own_head_is_left_alone():
    shared = critic_only(policy(0, shared=True), {"observation": np.zeros((1, 3), np.float32)})
    assert shared == {"value_head.weight", "value_head.bias"}


# -- Fisher --------------------------------------------------------------------------------------


def test_the_fisher_of_a_linear_softmax_policy_is_the_exact_one():
    """F of W in `softmax(W x)`: mean over states of `p_a (1 - p_a) x_j^2`."""

    class Linear(torch.nn.Module):
        state_size = 0
        distribution = Categoricals((4,))

        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.randn(4, 3))

        def act(self, obs, state):
            return obs["observation"] @ self.weight.T, None, None

    torch.manual_seed(0)
    module, states = Linear(), strip(0, 40)
    x = torch.from_numpy(states.obs["observation"])
    p = torch.softmax(x @ module.weight.detach().T, -1)
    exact = torch.einsum("na,nj->aj", p * (1 - p), x**2) / len(x)
    found = fisher_of_policy(module, [states], 1000, Key(0))["weight"]
    torch.testing.assert_close(found, exact)
    assert float(found.min()) >= 0
    drawn = [
        fisher_of_policy(module, [states], 1000, Key(i), exact=False)["weight"] for i in range(60)
    ]
    torch.testing.assert_close(torch.stack(drawn).mean(0), exact, rtol=0.25, atol=0.01)


def test_examples_are_squared_one_by_one():
    """Of two states with opposite gradients the square of the mean would be 0."""
    weight = torch.zeros(1, requires_grad=True)
    from rlft.retention.fisher import diagonal

    found = diagonal({"w": weight}, [[(1.0, 3 * weight.sum())], [(1.0, -3 * weight.sum())]])
    assert float(found["w"]) == 9


def test_a_gaussian_s_closed_form_is_the_mean_over_many_draws():
    d = Gaussian(2)
    params = torch.tensor([0.3, -0.2, 0.1, -0.5], requires_grad=True)

    def fisher(pairs):
        total = torch.zeros(4)
        for weight, scalar in pairs:
            [grad] = torch.autograd.grad(scalar, params, retain_graph=True)
            total += float(weight) * grad**2
        return total

    exact = fisher(of_choice(d, params, None))
    rng = np.random.default_rng(0)
    drawn = torch.stack([fisher(of_choice(d, params, rng)) for _ in range(3000)]).mean(0)
    torch.testing.assert_close(drawn, exact, rtol=0.15, atol=0.02)
    torch.testing.assert_close(exact[2:], torch.tensor([2.0, 2.0]))


def test_the_fisher_leaves_out_what_a_critic_alone_reads():
    found = fisher_of_policy(policy(0), [strip(0, 6)], 6, Key(0))
    assert not [n for n in found if n.startswith("value")]
    assert all(float(f.min()) >= 0 for f in found.values())
    remembered = fisher_of_policy(policy(0, memory=5), [strip(0, 6)], 6, Key(0))
    assert any(n.startswith("memory") for n in remembered)


def test_the_fisher_of_texts_is_the_mean_square_of_single_gradients():
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.table = torch.nn.Parameter(torch.randn(5, 5))

        def forward(self, input_ids):
            return SimpleNamespace(logits=self.table[input_ids])

    torch.manual_seed(0)
    model = Model()
    texts = [[0, 1, 2, 3], [2, 4]] * 400
    found = fisher_of_texts(model, texts, Key(0))["table"]
    p = torch.softmax(model.table.detach(), -1)
    # Each of the two kinds of text visits its rows once: a row's Fisher is p (1 - p).
    exact = torch.zeros(5, 5)
    for row in (0, 1, 2, 2):
        exact[row] += p[row] * (1 - p[row]) / 2
    torch.testing.assert_close(found, exact, rtol=0.3, atol=0.02)


def test_a_fisher_file_is_read_as_it_was_written_or_refused(tmp_path):
    from safetensors.torch import save_file

    path = tmp_path / "f.safetensors"
    whole = Fisher({"w": torch.rand(2, 3)}, {"w": torch.randn(2, 3)}, {"states": 3})
    write_fisher(path, whole)
    again = read_fisher(path)
    assert torch.equal(again.fisher["w"], whole.fisher["w"])
    assert again.about == {"states": 3}
    bad = torch.tensor([[1.0, float("inf"), 0.0]])
    for fisher, anchor, said in (
        (bad, torch.zeros(1, 3), r"Fisher of w has 1 entries that are not finite.*again"),
        (bad.nan_to_num(), bad, r"anchor of w has 1 entries that are not finite.*again"),
        (-torch.ones(2), torch.zeros(2), "negative"),
        (torch.ones(2), torch.zeros(3), r"(?s)the anchor \[3\]; a penalty needs"),
        (torch.ones(2), None, r"(?s)the anchor none; a penalty needs"),
    ):
        held = {"fisher/w": fisher} | ({} if anchor is None else {"anchor/w": anchor})
        save_file(held, path)
        with pytest.raises(DataError, match=said) as caught:
            read_fisher(path)
        assert "damaged" not in str(caught.value)
    with pytest.raises(DataError, match="Fisher of w has 1 entries that are not finite"):
        write_fisher(tmp_path / "new", Fisher({"w": bad}, {"w": torch.zeros(1, 3)}, {}))
    assert not (tmp_path / "new").exists(), "what a policy with NaN outputs gives is not kept"
    path.write_bytes(b"nothing")
    with pytest.raises(DataError, match="damaged or no Fisher file"):
        read_fisher(path)
    with pytest.raises(DataError, match=r"not a file; make it with `python -m rlft\.retention"):
        read_fisher(tmp_path / "none")
    (tmp_path / "start").mkdir()
    save_file({"w": torch.zeros(3, 2)}, tmp_path / "start/model.safetensors")
    with pytest.raises(ConfigError, match=r"another policy: its w is \[2, 3\].*\[3, 2\]"):
        fits(whole, tmp_path / "start", path)


def test_of_a_fisher_file_one_tensor_is_held_at_a_time(tmp_path):
    import gc

    def alive():
        gc.collect()
        return sum(1 for x in gc.get_objects() if torch.is_tensor(x) and x.shape == (7, 1009))

    path, before = tmp_path / "f.safetensors", alive()
    fisher = {str(i): torch.rand(7, 1009) for i in range(20)}
    write_fisher(path, Fisher(fisher, {n: -t for n, t in fisher.items()}, {}))
    first = fisher["3"].clone()
    del fisher
    found = read_fisher(path)
    assert alive() == before + 1, "the copy that the test keeps"
    for tensor in found.anchor.values():
        assert tensor.shape == (7, 1009)
        assert alive() <= before + 3
    assert torch.equal(found.fisher["3"], first) and torch.equal(found.anchor["3"], -first)
    assert "3" in found.fisher and "20" not in found.fisher and len(found.anchor) == 20


# -- coefficients --------------------------------------------------------------------------------


def test_a_decay_falls_to_its_floor_and_depends_on_the_count_alone():
    decay = Decay.model_validate({"from": 0.75, "factor": 0.99998, "floor": 0.33})
    assert decay(0) == 0.75
    assert decay(1) == pytest.approx(0.75 * 0.99998)
    reached = next(n for n in range(40_000, 43_000) if decay(n) == 0.33)
    assert reached == pytest.approx(41_050, abs=2)  # ln(.33/.75) / ln(.99998)
    assert decay(10**7) == 0.33
    assert at_update(0.4, 99) == 0.4
    job = SimpleNamespace(coef=(decay, 1.5))
    # As a resumed run has it: 10 steps, and 5 more from a count that was saved.
    assert coefs(job, 15)[0] == pytest.approx(0.75 * 0.99998**15)
    assert coefs(job, 15)[1] == 1.5
    coef = {"kind": "decay", "from": 0.5, "factor": 0.9}
    term = registry.build("retention", {"name": "kickstarting", "coef": coef})
    assert term.term().coef(2) == pytest.approx(0.405)


# -- memory --------------------------------------------------------------------------------------


def test_protected_slots_are_never_overwritten():
    kept = {"s": np.arange(3), "r": np.ones((3, 2))}
    memory = Memory(8, kept)
    rng = np.random.default_rng(0)
    assert len(memory) == 3
    for start in range(100, 160, 7):
        count = int(rng.integers(1, 12))  # sometimes more than there are free slots
        rows = {"s": np.arange(start, start + count), "r": np.zeros((count, 2))}
        memory.add(rows)
        assert memory.columns["s"][:3].tolist() == [0, 1, 2]
        assert (memory.columns["r"][:3] == 1).all()
        assert rows["s"][-1] in memory.columns["s"], "the newest row is there"
    assert len(memory) == 8
    drawn = memory.sample(40, rng, protected=0.25)
    assert int((drawn["s"] < 3).sum()) == 10
    with pytest.raises(ConfigError, match="cannot protect 3; raise its capacity"):
        Memory(2, kept)
    with pytest.raises(ConfigError, match="all 3 slots of the memory are protected"):
        Memory(3, kept).add(kept)
    with pytest.raises(ConfigError, match=r"rows have columns \['s'\]"):
        memory.add({"s": np.zeros(1)})
    with pytest.raises(ConfigError, match=r"'r' as float64 \[1, 1\], the memory holds float64"):
        memory.add({"s": np.zeros(1, int), "r": np.zeros((1, 1))})
    with pytest.raises(ConfigError, match=r"'s' as float64 \[1\], the memory holds int64"):
        memory.add({"s": np.zeros(1), "r": np.zeros((1, 2))})


def test_unprotected_slots_hold_the_newest_rows():
    memory = Memory(5, {"s": np.array([-1, -2])})
    for i in range(10):
        memory.add({"s": np.array([i])})
        assert sorted(memory.columns["s"].tolist())[2:] == list(range(max(0, i - 2), i + 1))


# -- configuration -------------------------------------------------------------------------------

BASE = {
    "name": "x",
    "steps": 1,
    "tasks_per_step": 1,
    "algo": "control_ppo",
    "env": {"name": "gym", "id": "CartPole-v1"},
    "model": {"build": "mlp", "dtype": "float32"},
}


def checked(**changes):
    from rlft.check import check_plugins

    return check_plugins(parse_config({**BASE, **changes}, "test"))


def demos(folder, width=4, actions=2, name="demos"):
    row = {"observations": [[0.0] * width] * 3, "actions": [0, actions - 1, 0]}
    path = folder / f"{name}.jsonl"
    path.write_text(json.dumps(row) + "\n")
    return str(path)


def test_what_cannot_work_is_refused_before_anything_starts(tmp_path):
    def refused(match, *retention, **changes):
        with pytest.raises((ConfigError, DataError), match=match):
            checked(retention=list(retention), **changes)

    cloning = {"name": "behavioural_cloning", "path": demos(tmp_path)}
    checked(retention=[cloning, {"name": "l2"}, {"name": "kickstarting"}])
    refused("two terms are called 'behavioural_cloning'", cloning, cloning)
    refused("two terms ask a teacher on rollouts", {"name": "kickstarting"},
            {"name": "kickstarting", "called": "again"})  # fmt: skip
    refused("Reference is not for a policy that acts", {"name": "reference"})
    for coef in (-1.0, float("nan"), float("inf")):
        refused(
            "retention.*l2: coef.*(finite number|greater than or equal to 0)",
            {"name": "l2", "coef": coef},
        )
    refused("give `fisher`, a file made before, or `path`", {"name": "ewc"})
    refused("is not a file; make it with", {"name": "ewc", "fisher": "nowhere"})
    refused("holds no policy of an environment", {"name": "kickstarting", "teacher": str(tmp_path)})
    refused("is not a file; expected demonstrations", {**cloning, "path": "none.npz"})
    refused(
        "outside of the space|expected numbers",
        {**cloning, "path": demos(tmp_path, width=5, name="wide")},
    )
    refused(r"unknown key 'coeff'.*Did you mean 'coef'", {**cloning, "coeff": 1})
    (tmp_path / "broken.npz").write_bytes(b"PK\x03\x04 nothing")
    refused("damaged or no .npz file", {**cloning, "path": str(tmp_path / "broken.npz")})


def test_a_teacher_of_another_action_set_is_refused(tmp_path):
    import gymnasium

    from rlft.policy.actor_critic import new_policy

    new_policy({"name": "mlp"}, gymnasium.make("Acrobot-v1"), 0, tmp_path / "teacher")
    term = {"name": "kickstarting", "teacher": str(tmp_path / "teacher")}
    with pytest.raises(
        ConfigError, match=r"belongs to other observations or actions.*`model` folder"
    ):
        checked(retention=[term])


def test_a_policy_for_as_many_actions_that_are_others_is_refused(tmp_path, monkeypatch):
    import gymnasium

    from rlft.policy.actor_critic import load_policy, new_policy

    env = gymnasium.make("Pendulum-v1")
    new_policy({"name": "mlp"}, env, 0, tmp_path / "teacher")
    monkeypatch.setenv("HOME", str(tmp_path))
    load_policy("~/teacher", env)
    env.action_space = gymnasium.spaces.Box(-2.0, 2.0, (1,), np.float64)
    load_policy("~/teacher", env)  # the same, in numbers of another length
    env.action_space = gymnasium.spaces.Box(-9.0, 9.0, (1,))
    with pytest.raises(ConfigError, match=r"takes other actions \(Box\(-2.0.* has \(Box\(-9.0"):
        load_policy(tmp_path / "teacher", env)


def test_every_term_is_found_by_name():
    names = {n.casefold() for n in registry.short_names("retention")}
    known = {"ewc", "l2", "behaviouralcloning", "kickstarting", "reference", "textreplay"}
    assert names == {*known, "language"}
    assert isinstance(registry.build("retention", {"name": "l2", "coef": 0.1}), L2)
    assert EWC(path="x").term().module == "weights"


@pytest.mark.parametrize("memory", [0, 6])
def test_the_shares_of_two_ranks_add_up_to_the_whole(memory):
    strips = [strip(i, 20 + i) for i in range(3)]
    teacher = ActingTeacher(policy(1, memory=memory), torch.device("cpu"))
    buffer = Buffer(
        BehaviouralCloning("unread", batch=48, unroll=8, burn_in=4), strips, teacher, Key(0)
    )

    def gradient(world, rank):
        student = Student(policy(2, memory=memory))
        student.world = world
        value = buffer.backward(student, 1.5, 3, rank)
        grads = [p.grad for _, p in student.policy.named_parameters() if p.grad is not None]
        return value, torch.cat([g.flatten() for g in grads])

    whole, halves = gradient(1, 0), [gradient(2, rank) for rank in (0, 1)]
    assert sum(h[0] for h in halves) == pytest.approx(whole[0], rel=1e-5)
    torch.testing.assert_close(halves[0][1] + halves[1][1], whole[1])


def test_a_teacher_that_writes_must_share_the_vocabulary(tmp_path):
    from rlft.retention.term import Place

    for name, size in (("start", 19), ("teacher", 20)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps({"vocab_size": size}))
    cfg = parse_config(BASE, "test")
    place = Place(cfg, tmp_path / "start", tmp_path, None, acts=False)
    with pytest.raises(ConfigError, match=r"a vocabulary of 20, the policy of 19"):
        Kickstarting(teacher=str(tmp_path / "teacher")).prepared(place)
    assert Kickstarting().prepared(place).teacher == str(tmp_path / "start")
    with pytest.raises(ConfigError, match="no folder of a language model"):
        Kickstarting(teacher=str(tmp_path)).prepared(place)


def test_two_tokenizers_of_one_size_are_no_shared_one(tmp_path, tiny_model):
    other = shutil.copytree(tiny_model, tmp_path / "other")
    file = other / "tokenizer.json"
    said = json.loads(file.read_text())
    vocab = said["model"]["vocab"]
    vocab["1"], vocab["2"] = vocab["2"], vocab["1"]
    file.write_text(json.dumps(said))
    teacher, texts = str(other), tmp_path / "texts.jsonl"
    texts.write_text('{"text": "1+2=3"}\n')
    cfg = parse_config(tree(tiny_model), "small")
    for check in (
        Kickstarting(teacher=teacher).check,
        TextReplay(str(texts), target="teacher", teacher=teacher).check,
        lambda cfg, env, acts: TextForgetting(str(texts), base=teacher).check(cfg, env),
    ):
        with pytest.raises(ConfigError, match=r"another tokenizer.* token \d+ is '\d' there"):
            check(cfg, None, False)
    same = shutil.copytree(tiny_model, tmp_path / "same")
    said = json.loads((same / "tokenizer.json").read_text())
    said["added_tokens"].append(
        {"id": 900, "content": "<mine>", "special": True, "single_word": False, "lstrip": False,
         "rstrip": False, "normalized": False}
    )  # fmt: skip
    (same / "tokenizer.json").write_text(json.dumps(said))
    Kickstarting(teacher=str(same)).check(cfg, None, False)


def test_a_teacher_with_a_memory_is_not_asked_about_vines(tmp_path):
    vines = {"name": "polychromic", "seeds": 4, "set_size": 2}
    network = {"name": "cnn_gru", "channels": [], "width": 8, "memory": 4}
    env = {"name": "minigrid", "configurations": 2}

    def polychromic(states, build, **keys):
        checked(
            algo={**vines, "rollout_states": states}, env=env,
            retention=[{"name": "kickstarting", **keys}],
            model={"build": build, "dtype": "float32"},
        )  # fmt: skip

    polychromic(0, network)
    polychromic(2, {"name": "mlp"})
    with pytest.raises(ConfigError, match=r"set algo.rollout_states=0 \(it is 2\)"):
        polychromic(2, network)

    # It is the teacher that is asked, whoever learns; before a warm start nobody knows its policy.
    one = registry.build("env", env).make()
    for name, spec in (("remembers", network), ("forgets", {"name": "mlp"})):
        new_policy(spec, one, 0, tmp_path / name)
    polychromic(2, network, teacher=str(tmp_path / "forgets"))
    with pytest.raises(ConfigError, match=r"set algo.rollout_states=0 \(it is 2\)"):
        polychromic(2, {"name": "mlp"}, teacher=str(tmp_path / "remembers"))
    cfg = parse_config({**BASE, "algo": {**vines, "rollout_states": 2}, "env": env}, "test")
    warm = cfg.model_copy(
        update={
            "warm_start": "x.yaml",
            "model": cfg.model.model_copy(update={"build": None}),
            "retention": ["kickstarting"],
        }
    )
    check_retention(warm, registry.build("algo", warm.algo), registry.build("env", env))


def test_texts_have_a_teacher_only_where_they_are_told_to(tmp_path):
    from rlft.retention.term import Place

    for name, size in (("start", 19), ("teacher", 20)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps({"vocab_size": size}))
    texts, teacher = tmp_path / "texts.jsonl", str(tmp_path / "teacher")
    texts.write_text('{"text": "1+2=3"}\n')
    cfg = parse_config(BASE, "test")
    place = Place(cfg, tmp_path / "start", tmp_path, None, acts=False)
    with pytest.raises(ConfigError, match=r"top_k=4 are of `target: teacher`, and target is text"):
        TextReplay(str(texts), top_k=4).check(cfg, None, False)
    with pytest.raises(ConfigError, match="no folder of a language model"):
        TextReplay(str(texts), target="teacher", teacher=str(tmp_path)).check(cfg, None, False)
    with pytest.raises(ConfigError, match=r"a vocabulary of 20, the policy of 19"):
        TextReplay(str(texts), target="teacher", teacher=teacher).prepared(place)
    start = str(tmp_path / "start")
    assert TextReplay(str(texts), target="teacher").prepared(place).teacher == start
    assert TextReplay(str(texts)).prepared(place).teacher is None


@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_a_coefficient_never_goes_below_0(kind):
    schedule = {"kind": kind, "from": 1.0, "to": -1.0, "steps": 10}
    with pytest.raises(ConfigError, match=r"pushes away from what is kept.*from 1 to -1"):
        checked(retention=[{"name": "l2", "coef": schedule}])
    checked(retention=[{"name": "l2", "coef": {**schedule, "to": 0.0}}])


def test_states_of_a_fisher_are_drawn_from_the_whole_file(tmp_path, tiny_model):
    texts = tmp_path / "sorted.jsonl"
    texts.write_text(
        "".join(json.dumps({"text": f"{i // 50}+{i % 9}="}) + "\n" for i in range(200))
    )

    def taken(drawn):
        found = token_lists(texts, tiny_model, 20, limit=40, drawn=drawn)
        assert len(found) == 40
        return found

    assert taken(Key(1)) == taken(Key(1)) != taken(Key(2))
    assert len({ids[0] for ids in taken(None)}) == 1, "the first of them are of one kind"
    assert len({ids[0] for ids in taken(Key(1))}) == 4


def test_a_pattern_that_names_nothing_is_refused():
    from rlft.config import Freeze
    from rlft.learning.freeze import frozen_groups

    module = policy(0)
    named, groups = list(module.named_parameters()), [{"params": list(module.parameters())}]
    with pytest.raises(ConfigError, match=r"no trained weight is called 'encoder\.\*'"):
        frozen_groups(groups, named, [Freeze(names=["encoder.*"])])
    with pytest.raises(ConfigError, match="holds every weight for ever"):
        frozen_groups(groups, named, [Freeze(names=["*"])])
    split, [rule] = frozen_groups(groups, named, [Freeze(names=["policy_encoder.*"], until=3)])
    assert [g["held"] for g in split] == ["", rule.mark]
    assert sum(len(g["params"]) for g in split) == len(named)


def test_kickstarting_asks_the_teacher_about_the_rollout_and_adds_the_mean_kl(monkeypatch):
    """A fit whose only term is kickstarting, with a spy for a teacher; two strips of 5 and 3 steps."""
    from rlft.learning import objective
    from rlft.learning.strip_fit import fit_strips
    from rlft.learning.strip_job import StripJob

    monkeypatch.setattr(objective.dist, "all_reduce", lambda *args, **keys: None)

    class Learner(Student):
        def begin(self, step): ...

        def running_numbers(self):
            return nullcontext(self.policy)

        def step(self, lr, critic_lr, *, critic_only=False):
            return True, 1.0

    class Spy(ActingTeacher):
        def params(self, strips, carry=True):
            self.asked = list(strips)
            return super().params(strips, carry)

    strips = [strip(0, 5, slot=0), strip(1, 3, slot=1)]
    kept, student = Retained(), Learner(policy(2))
    kept.teacher = Spy(policy(1), torch.device("cpu"))
    term = Kickstarting(coef=0.5).term()
    job = StripJob(
        number=np.zeros(2, np.float32), on_policy=np.ones(2, bool), terms=(term,), coef=(0.5,),
        credit=None, epochs=1, minibatches=1, normalise="none", key=Key(0), lr=0.1, critic_lr=None,
        token_budget=3,
    )  # fmt: skip
    report = fit_strips(student, job, 0, strips, retained=kept)
    assert [id(s) for s in kept.teacher.asked] == [id(s) for s in strips]
    plain = policy(2)
    obs = {"observation": torch.from_numpy(np.concatenate([s.obs["observation"] for s in strips]))}
    p, q = kept.teacher.policy.act(obs, None)[0], plain.act(obs, None)[0]
    kl = Categoricals((4,)).kl(p, q).mean()
    (0.5 * kl).backward()
    assert report.metrics["loss/kickstarting"] == pytest.approx(float(kl.detach()), rel=1e-5)
    assert report.metrics["coef/kickstarting"] == 0.5
    for (name, ours), theirs in zip(
        student.policy.named_parameters(), plain.parameters(), strict=True
    ):
        expected = torch.zeros_like(ours) if theirs.grad is None else theirs.grad
        found = torch.zeros_like(ours) if ours.grad is None else ours.grad
        torch.testing.assert_close(found, expected, msg=name)
        assert not name.startswith("value") or float(found.abs().max()) == 0
