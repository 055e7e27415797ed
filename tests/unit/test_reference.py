"""Demonstrations among samples: which tokens are given, which rows come of it, when none is."""

import asyncio
from dataclasses import replace

import numpy as np
import pytest

from algos.grpo import GRPO
from algos.tempsamp import TempSamp
from rlft import registry
from rlft.errors import ConfigError, DataError
from rlft.filters import drop_unneeded, given_numbers, part_of
from rlft.prefix import Prefix
from rlft.record.summary import collected
from rlft.reference import sampled_member, wanted
from rlft.sampling.sampler import Ask, _row, _within
from rlft.seeding import Key
from rlft.tasks import in_mode, mode_at
from rlft.types import Completion, Group, Guide, Outcome, RowRef, Task, Ticket, Trajectory


class Letters:
    """A tokenizer of one token a letter, closed by 0."""

    def response_ids(self, text):
        return [*map(ord, text), 0]


def asked(
    share, num=1, demos=("abcd",), max_tokens=5, max_length=20, trained=True, seeds=(1, 2, 3)
):
    return wanted(
        Letters(),
        Task("t", "?", demos=demos),
        [7, 8],
        list(seeds),
        share=share,
        guide=Guide(num, (share,), trained),
        max_tokens=max_tokens,
        max_length=max_length,
    )


def test_a_whole_demonstration_takes_the_place_of_the_last_sample():
    got = asked(1.0)
    assert got.asks == (Ask((7, 8), (1, 2)),)
    [demo] = got.demos
    assert demo.row.ids.tolist() == [7, 8, *map(ord, "abcd"), 0]
    assert demo.row.prompt_len == 2
    assert np.isnan(demo.row.sample_logp).all() and len(demo.row.sample_logp) == 5


@pytest.mark.parametrize("share, length", [(0.2, 1), (0.39, 1), (0.4, 2), (0.79, 3), (0.99, 4)])
def test_a_prefix_is_cut_from_the_demonstration_s_tokens(share, length):
    plain, guided = asked(share).asks
    assert plain == Ask((7, 8), (1, 2))
    assert guided == Ask((7, 8), (3,), tuple(map(ord, "abcd"))[:length])


@pytest.mark.parametrize(
    "share, demos, max_tokens",
    [
        (0.0, ("abcd",), 5),
        (0.1, ("abcd",), 5),
        (1.0, (), 5),
        (1.0, ("abcd",), 4),
        (0.5, ("abcd",), 4),
    ],
)
def test_without_a_demonstration_that_fits_every_member_is_a_plain_sample(share, demos, max_tokens):
    got = asked(share, demos=demos, max_tokens=max_tokens)
    assert got.demos == ()
    assert got.asks == (Ask((7, 8), (1, 2, 3)),)


def test_several_demonstrations_take_turns_and_those_too_long_are_passed_over():
    got = asked(1.0, num=3, demos=("ab", "abcdef", "cd"))
    assert [d.text for d in got.demos] == ["ab", "cd", "ab"]
    assert got.asks == ()


def test_a_prefix_that_leaves_no_room_is_refused():
    with pytest.raises(DataError, match=r"prefix \(4\) and sampler.max_tokens \(5\) exceed"):
        asked(0.9, max_length=10)
    asked(0.9, max_length=11)


def test_the_row_of_a_continued_prefix():
    ask = Ask((7, 8), (3,), (65, 66))
    done = Completion(np.array([67, 0], np.int32), np.array([-1.0, -2.0], np.float32), True)
    row = _row(ask, done)
    assert row.ids.tolist() == [7, 8, 65, 66, 67, 0] and row.prompt_len == 2
    assert np.isnan(row.sample_logp[:2]).all() and row.sample_logp[2:].tolist() == [-1, -2]
    masked = _row(Ask((7, 8), (3,), (65, 66), trained=False), done)
    assert masked.ids.tolist() == row.ids.tolist() and masked.prompt_len == 4
    assert masked.sample_logp.tolist() == [-1, -2]
    ahead = _row(ask, replace(done, version=np.array([3, 4], np.int32)))
    assert ahead.version.tolist() == [-1, -1, 3, 4], "given tokens were drawn by no version"


def test_a_prefix_counts_towards_the_response_budget():
    done = Completion(np.array([5, 6, 0], np.int32), np.zeros(3, np.float32), True)
    assert _within(done, 3) is done
    cut = _within(done, 2)
    assert cut.ids.tolist() == [5, 6] and not cut.stopped and len(cut.logp) == 2


@pytest.mark.parametrize("trained, prompt, tokens, given", [(True, 2, 4, 2), (False, 4, 2, 0)])
def test_what_the_driver_knows_of_a_continued_prefix(trained, prompt, tokens, given):
    ask = Ask((7, 8), (3,), (65, 66), trained)
    m = sampled_member("m", Task("t", "?"), ask, ("ABC", 2, False, (4, 5)), RowRef(None, 0))
    assert (m.origin, m.prompt_len, m.num_tokens, m.given_tokens) == (
        "mixed",
        prompt,
        tokens,
        given,
    )
    plain = sampled_member(
        "m", Task("t", "?"), Ask((7, 8), (3,)), ("C", 2, True, (5, 5)), RowRef(None, 0)
    )
    assert (plain.origin, plain.prompt_len, plain.num_tokens, plain.truncated) == (
        "policy",
        2,
        2,
        True,
    )


# -- groups --------------------------------------------------------------------------------------


def member(origin, reward, tokens=4, given=0, parts=None, kind="value"):
    return Trajectory(
        "m",
        "t",
        origin,
        "",
        3,
        tokens,
        (0, 0),
        False,
        RowRef(0, 0),
        Outcome(kind, reward, parts or {}),
        given,
    )


def group(*members, demos=("d",)):
    return Group(Task("t", "?", demos=demos), members)


def test_given_rows_are_in_no_mean_of_what_was_sampled():
    rows = group(
        member("policy", 0.2, parts={"iou": 0.2}),
        member("policy", 0.4, tokens=6, parts={"iou": 0.4}),
        member("mixed", 0.9, tokens=8, given=5, parts={"iou": 0.9}),
        member("demo", 1.0, tokens=4, given=4, parts={"iou": 1.0}),
    )
    got = collected([rows])
    assert got["reward/mean"] == pytest.approx(0.3)
    assert got["reward/iou"] == pytest.approx(0.3)
    assert got["reward/given_mean"] == pytest.approx(0.95)
    assert got["tokens/completion"] == 4 + 6 + 3
    assert got["completion/mean_tokens"] == 5


def test_help_is_given_only_where_no_sample_is_good_enough():
    good = group(member("policy", 1.0), member("policy", 0.0), member("demo", 1.0))
    bad = group(member("policy", 0.4), member("policy", 0.0), member("demo", 1.0))
    kept = drop_unneeded([good, bad], 0.5)
    assert [[m.origin for m in g.members] for g in kept] == [
        ["policy", "policy"],
        ["policy", "policy", "demo"],
    ]


def test_what_was_not_given_is_counted():
    rows = [
        group(member("policy", 0.0), demos=()),
        group(member("policy", 0.0)),
        group(member("policy", 0.0), member("demo", 1.0)),
    ]
    assert given_numbers(rows) == {"reference/missing": 1, "reference/not_given": 1}


def test_the_task_term_is_a_named_part():
    rows = [
        group(
            member("policy", 0.6, parts={"iou": 0.5, "format": 1.0}),
            member("demo", 0.0, kind="invalid"),
        )
    ]
    assert part_of(rows, "iou").tolist() == [0.5, 0.0]
    assert part_of(rows, None).tolist() == [0.6, 0.0]
    with pytest.raises(
        ConfigError, match=r"no part 'iuo'\. Did you mean 'iou'\? It has: iou, format"
    ):
        part_of(rows, "iuo")


# -- modes and schedules ---------------------------------------------------------------------------


def test_phases_switch_the_mode_at_their_step():
    phases = {"think": 10, "answer": 0}
    assert [mode_at(phases, s) for s in (0, 9, 10, 99)] == ["answer", "answer", "think", "think"]
    assert mode_at(None, 5) is None
    with pytest.raises(ConfigError, match="no phase begins at step 0"):
        mode_at({"answer": 3}, 2)


def test_a_mode_replaces_what_it_names():
    task = Task(
        "t", "a?", demos=("a",), info={"k": 1, "modes": {"think": {"prompt": "t?", "demos": ()}}}
    )
    posed = in_mode(task, "think")
    assert (posed.prompt, posed.demos, posed.info["mode"], posed.info["k"]) == (
        "t?",
        (),
        "think",
        1,
    )
    assert in_mode(task, None) is task
    with pytest.raises(DataError, match=r"no mode 'thnk'\. Did you mean 'think'"):
        in_mode(task, "thnk")


def ticket(index):
    return Ticket(index, (), Key(0).child("ticket", index))


def test_uft_s_prefix_is_binomial_and_ends():
    prefix = Prefix(high=0.6, chunks=5, until=100)
    shares = [prefix.share(ticket(i), p) for i in range(100) for p in range(20)]
    assert set(shares) == {k / 5 for k in range(6)}
    assert np.mean(shares) == pytest.approx(0.6, abs=0.02)
    assert np.var(shares) == pytest.approx(0.6 * 0.4 / 5, abs=0.005)
    assert prefix.share(ticket(100), 0) == 0
    assert Prefix(high=0.0, chunks=5).share(ticket(3), 0) == 0.0
    assert Prefix(high=1.0, chunks=5).share(ticket(3), 0) == 1.0


def test_prefix_rft_s_prefix_is_uniform_between_its_bounds():
    low = {"kind": "cosine", "from": 0.9, "to": 0.1, "steps": 100}
    prefix = registry.build(
        "algo", {"name": "tempsamp", "prefix": {"low": low, "high": 0.9}}
    ).prefix
    at_end = [prefix.share(ticket(500), p) for p in range(2000)]
    assert 0.1 <= min(at_end) < 0.12 and 0.88 < max(at_end) <= 0.9
    assert np.mean(at_end) == pytest.approx(0.5, abs=0.02)
    assert {prefix.share(ticket(0), p) for p in range(20)} == {0.9}
    assert prefix.share(ticket(7), 3) == prefix.share(ticket(7), 3) != prefix.share(ticket(7), 4)


# -- the algorithm ---------------------------------------------------------------------------------


class FakeRun:
    """What an algorithm needs of a run, with a fixed reward for each origin."""

    def __init__(self, *rewards):
        self.rewards, self.noted, self.asked = rewards, {}, None

    async def rollout(self, tasks, *, n, key, guide=None):
        self.asked = (tasks, n, guide)
        num = guide.num if guide else 0
        groups = []
        for task in tasks:
            k = num if task.demos else 0
            origins = ["policy"] * (n - k) + ["demo"] * k
            groups.append(Group(task, tuple(member(o, None) for o in origins)))
        return groups

    async def score(self, groups, least=2):
        scored = []
        for g in groups:
            values = iter(self.rewards)
            members = tuple(
                member(m.origin, 1.0 if m.origin == "demo" else next(values)) for m in g.members
            )
            scored.append(Group(g.task, members))
        return scored

    def note(self, numbers):
        self.noted.update(numbers)

    def fit(self, groups, adv, **keys):
        self.fitted = adv


def step(algo, run, *tasks, index=0):
    groups = asyncio.run(algo.collect(run, Ticket(index, tasks, Key(0))))
    algo.learn(run, groups)
    return groups


TASK = Task("t", "?", demos=("d",))


def test_a_group_is_three_samples_and_the_ground_truth():
    run = FakeRun(0.5, 0.55, 0.6)
    algo = TempSamp(stabiliser="anchor")
    [g] = step(algo, run, TASK)
    assert run.asked[1:] == (4, Guide(1, (1.0,), True))
    assert [m.origin for m in g.members] == ["policy"] * 3 + ["demo"]
    assert run.fitted.tolist() == pytest.approx([-1, 0, 1, 1.2], abs=1e-4)
    assert run.noted["reference/dominates"] == 1 and run.noted["reference/missing"] == 0


def test_a_task_without_a_demonstration_is_left_to_the_policy():
    run = FakeRun(0.1, 0.2, 0.3, 0.4)
    groups = step(TempSamp(), run, TASK, Task("u", "?"))
    assert [len(g.members) for g in groups] == [4, 4]
    assert {m.origin for m in groups[1].members} == {"policy"}
    assert run.noted["reference/missing"] == 1
    with pytest.raises(DataError, match="none of the step's tasks has a demonstration"):
        step(TempSamp(), run, Task("u", "?"))


def test_two_phases_give_ground_truth_where_there_is_some():
    modes = {"answer": {"prompt": "a", "demos": ("d",)}, "think": {"prompt": "t", "demos": ()}}
    task = Task("t", "", info={"modes": modes})
    run = FakeRun(0.1, 0.2, 0.3, 0.4)
    algo = TempSamp(phases={"answer": 0, "think": 5})
    [first] = step(algo, run, task, index=4)
    [second] = step(algo, run, task, index=5)
    assert (first.task.prompt, [m.origin for m in first.members][-1]) == ("a", "demo")
    assert (second.task.prompt, [m.origin for m in second.members][-1]) == ("t", "policy")


def test_a_prefix_that_no_loss_reads_is_part_of_the_prompt():
    run = FakeRun(0.1, 0.2, 0.3)
    step(TempSamp(reference_loss=None), run, TASK)
    assert run.asked[2].trained is False
    step(TempSamp(reference_loss=None, sft_coef=0.1), run, TASK)
    assert run.asked[2].trained is True


def test_terms_wrap_grpo_s_and_leave_it_alone_without_references():
    assert TempSamp(references=0).terms == GRPO(group_size=4).terms
    names = [t.name for t in TempSamp(kl_coef=0.1, sft_coef=0.5).terms]
    assert names == ["policy", "kl", "sft"]
    assert TempSamp(loss="gspo").aggregate == "sequence", "what the wrapped loss asks for"
    half = TempSamp(references=2, prefix=Prefix()).terms[0].fn
    assert half.prefix_weight == 0.5 and TempSamp(references=2).terms[0].fn.prefix_weight == 1


@pytest.mark.parametrize(
    "keys, error, message",
    [
        ({"references": 5}, ConfigError, "more than algo.group_size=4"),
        ({"stabiliser": "shap"}, ConfigError, "Did you mean 'shape'"),
        ({"stabiliser": {"name": "shape", "tua": 1}}, ConfigError, "Did you mean 'tau'"),
        ({"prefix": {"hihg": 1}}, ConfigError, "hihg"),
        ({"top_entropy": 2.0}, ConfigError, "top_entropy must lie in"),
        ({"reference_loss": "Clipped"}, ConfigError, "unknown loss 'Clipped'"),
        ({"refill": 1}, ConfigError, "algo.refill is of grpo alone"),
        ({"advantage": "reinforce_pp"}, ConfigError, "reads length_B; a stabiliser knows reward_B"),
        ({"phases": {"answer": -1}}, ConfigError, "greater than or equal to 0"),
    ],
)
def test_wrong_keys_are_refused_before_anything_starts(keys, error, message):
    with pytest.raises(error) as refused:
        registry.build("algo", {"name": "tempsamp", **keys})
    assert message in str(refused.value)


def test_a_stabiliser_of_one_s_own_is_one_file(tmp_path):
    (tmp_path / "mine.py").write_text(
        "def ignore(rows, credit):\n    return credit(rows.reward, rows.group) * rows.sampled\n"
    )
    run = FakeRun(0.5, 0.55, 0.6)
    algo = registry.build("algo", {"name": "tempsamp", "stabiliser": f"{tmp_path}/mine.py:ignore"})
    step(algo, run, TASK)
    assert run.fitted[-1] == 0 and run.fitted[0] < 0


def test_a_prefix_out_of_range_is_refused_when_it_is_drawn():
    with pytest.raises(ConfigError, match="low and high must lie in"):
        Prefix(low=0.0, high=1.5).share(ticket(0), 0)
