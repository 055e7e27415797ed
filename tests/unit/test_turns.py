"""Turns as tokens and as messages, and the sampler's part of an episode."""

import threading
from types import SimpleNamespace

import numpy as np
import pytest

from rlft.check import check_plugins
from rlft.check.as_worker import turns
from rlft.collect import Collector
from rlft.config import parse_config
from rlft.errors import ConfigError, DataError
from rlft.policy.text import Text
from rlft.record.summary import collected, sample_rows
from rlft.rewards.places import host
from rlft.rewards.scorer import Scored
from rlft.sampling.sampler import Sampler
from rlft.sampling.turns import Turn
from rlft.seeding import Key
from rlft.turns import added
from rlft.types import Completion, Group, Outcome, Row, RowRef, Sampling, Task, Trajectory

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content.strip() }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
FORGETFUL = "{% for m in messages if m.role != 'assistant' %}{{ m.content }}\n{% endfor %}"


@pytest.fixture(scope="module")
def chat(tmp_path_factory):
    """A tokenizer of single characters with the marks of ChatML as tokens; `<|im_end|>` is its end."""
    from envs.addition import build_tokenizer

    tokenizer = build_tokenizer("abcdefghijklmnopqrstuvwxyz \n?!")
    tokenizer.add_special_tokens(
        {"eos_token": "<|im_end|>", "additional_special_tokens": ["<|im_start|>"]}
    )
    tokenizer.chat_template = CHATML
    folder = tmp_path_factory.mktemp("chat")
    tokenizer.save_pretrained(folder)
    return folder


def test_an_answer_in_a_chat_is_what_the_template_puts_between_two_turns(chat):
    text = Text(chat)
    closed = text.reply_ids("two red balls", "user", after=text.eos_id)
    assert "".join(text.pieces(closed)) == (
        "\n<|im_start|>user\ntwo red balls<|im_end|>\n<|im_start|>assistant\n"
    )
    # A turn that was cut off is closed for the policy, by a token that it did not choose.
    cut = text.reply_ids("two red balls", "user", after=closed[-2])
    assert cut == [text.eos_id, *closed]


def test_turns_put_together_are_the_template_of_the_whole_conversation(chat):
    """Where the template changes nothing that was said."""
    text = Text(chat)
    messages = [
        {"role": "user", "content": "what is there?"},
        {"role": "assistant", "content": "look"},
        {"role": "tool", "content": "a ball"},
        {"role": "assistant", "content": "a ball!"},
    ]
    ids = text.prompt_ids(tuple(messages[:1]))
    said, own = text.dialogue_ids(("look", "a ball", "a ball!"), "tool")
    whole = text._tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False)
    newline = text._tokenizer("\n").input_ids  # of the template, behind the last turn
    assert [*ids, *said, *newline] == whole
    assert text.decode(np.array(said)[own]) == "looka ball!"


def test_a_template_that_shows_no_turn_of_the_assistant_is_refused(chat, tmp_path):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(chat)
    tokenizer.chat_template = FORGETFUL
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(DataError, match="does not show what the assistant said"):
        Text(tmp_path).reply_ids("a ball", "user", after=1)


# -- the sampler ---------------------------------------------------------------------------------


class Parrot:
    """An engine that says so many tokens, and notes what it was asked."""

    def __init__(self, num):
        self.num, self.asked = num, []

    def generate(self, requests, sampling):
        self.asked.append((requests, sampling))
        num = min(self.num, sampling.max_tokens)
        ids = np.full(num, 7, np.int32)
        return [Completion(ids, np.full(num, -1.0, np.float32), num == self.num)] * len(requests)


@pytest.fixture
def sampler(tiny_model):
    cfg = parse_config(tree(), "turns")
    one = Sampler("sampler of a test", cfg, tiny_model)
    one._engine = Parrot(3)
    return one


def row(length):
    ids = np.arange(4, 4 + length).astype(np.int32)
    return Row(ids, 2, np.zeros(length - 2, np.float32))


def test_the_prefix_of_a_turn_is_every_token_before_it(sampler):
    turns = [Turn(1, "12", None, 5, 60), Turn(0, "3", None, 6, 60)]
    (_, _, heads), rows = sampler.go_on(turns, [row(4), row(6)], Sampling(max_tokens=8))
    [(requests, _)] = sampler._engine.asked
    twelve, three = (sampler._text.reply_ids(s, None, 0) for s in ("12", "3"))
    assert requests[0].prompt_ids == (4, 5, 6, 7, 8, 9, *twelve)
    assert requests[1].prompt_ids == (4, 5, 6, 7, *three)
    assert [r.seed for r in requests] == [5, 6]
    assert [(head[1], told) for head, told in heads] == [(3, 2), (3, 1)]
    assert rows[0].ids.tolist() == [*requests[0].prompt_ids, 7, 7, 7]
    assert rows[0].mask.tolist() == [True] * 4 + [False] * 2 + [True] * 3


def test_a_turn_is_cut_where_the_episode_has_no_more_room(sampler):
    turns = [Turn(0, "12", None, 5, 8), Turn(0, "12", None, 5, 20), Turn(0, "12", None, 5, 6)]
    (_, _, heads), rows = sampler.go_on(turns, [row(4)], Sampling(max_tokens=8, min_tokens=4))
    assert [(head[1], head[2], told) for head, told in heads] == [
        (2, True, 2),
        (3, False, 2),
        (0, True, 0),  # not even a token
    ]
    assert [len(r.ids) for r in rows] == [8, 9, 4]
    [(requests, asked)] = sampler._engine.asked
    assert len(requests) == 2
    assert asked.min_tokens == 2


# -- outcomes, records ---------------------------------------------------------------------------


def test_rewards_add_up_with_the_return_and_a_failure_of_either_decides():
    env = Outcome("value", 1.0, {"won": 1.0}, steps=((1, 1.0),))
    own = Outcome("value", 0.5, {"short": 0.5})
    both = added(env, own)
    assert both.reward == 1.5
    assert both.parts == {"won": 1.0, "short": 0.5, "return": 1.0}
    assert both.steps == env.steps
    assert added(both, own).reward == 1.5
    failed = Outcome("error", None, reason="hung")
    assert added(failed, own) is failed
    assert added(env, failed).reward is None
    assert added(None, own) is own


def test_lengths_and_counts_leave_the_environments_tokens_out():
    member = Trajectory(
        *("0.0.0", "t", "policy", "a\nb", 5, 7, (0, 0), False, RowRef(None, 0)),
        Outcome("value", 1.0),
        turns=("a", "told", "b"),
        env_tokens=30,
    )
    groups = [Group(Task("t", "p"), (member, member))]
    found = collected(groups)
    assert found["tokens/completion"] == 14
    assert found["completion/mean_tokens"] == 7
    assert found["tokens/environment"] == 60
    assert found["episode/turns"] == 2
    assert member.length == 42
    [shown, _] = sample_rows(groups, 1, "train")
    assert shown["turns"] == ["a", "told", "b"]


# -- configurations ------------------------------------------------------------------------------


def tree(**changes):
    return {
        **{"name": "turns", "steps": 1, "tasks_per_step": 2, "algo": "grpo", "env": "calculator"},
        "model": {"build": "envs.calculator:build_model", "max_length": 64, "dtype": "float32"},
        "sampler": {"max_tokens": 8},
        **changes,
    }


def test_an_environment_that_answers_back_needs_no_reward():
    cfg = parse_config(tree(), "turns")
    check_plugins(cfg)
    asked = host(cfg)
    assert asked.fns[0].args == {"env": "calculator"}
    assert host(parse_config(tree(env="addition"), "turns")) is None
    none = {"num": 0, "max_tokens": 8}
    assert host(parse_config(tree(algo="sft", sampler=none), "turns")) is None


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"algo": "es"}, "not built for an environment that answers back"),
        ({"algo": "tempsamp"}, "begins answers with demonstrations"),
        ({"algo": {"name": "grpo", "overlong_buffer": 4}}, "set algo.overlong_buffer=0"),
    ],
)
def test_what_is_not_built_for_turns_is_refused(changes, words):
    with pytest.raises(ConfigError, match=words):
        check_plugins(parse_config(tree(**changes), "turns"))


def test_a_check_plays_a_first_turn_of_each_task(tmp_path):
    cfg = parse_config(tree(), "turns")
    env = check_plugins(cfg)[1]
    tasks = [env.train()[i] for i in range(3)]
    assert list(turns(cfg, tasks, tmp_path)) == ["environment calculator: answered 6 first turns"]
    broken = {"name": "rooms_in_words:Echo", "broken": "never opens"}
    cfg = parse_config(tree(env=broken), "turns")
    with pytest.raises(
        DataError, match=r"(?s)fails on the turn '' of task 't0'.*no such room"
    ) as raised:
        list(turns(cfg, check_plugins(cfg)[1].train()[:1], tmp_path))
    assert "Correct the environment" in str(raised.value)
    assert list(turns(parse_config(tree(env="addition"), "turns"), tasks, tmp_path)) == []


def test_a_budget_below_one_turn_is_refused():
    with pytest.raises(ConfigError, match=r"turns.max_tokens \(4 for an episode\) is below"):
        parse_config(tree(turns={"max_tokens": 4}), "turns")


def test_an_evaluation_does_not_take_what_was_said_to_episodes_collected_beside_it():
    cfg = parse_config(tree(), "test")
    fleet = SimpleNamespace(samplers=[1], hosts=[1], rewards=[])
    collector = Collector(cfg, fleet, SimpleNamespace(stop_ids=()))
    collector._table = SimpleNamespace(
        play=lambda tasks, n, key, sampling: ([], [Scored([], 0, key.path[-1])])
    )
    played, evaluated, heard = threading.Event(), threading.Event(), []

    def collect():
        groups = collector.sample([], 1, Key(0).child("train"), False, None)
        played.set()
        evaluated.wait(10)
        heard.append(collector.outcomes(groups)[1])

    thread = threading.Thread(target=collect)
    thread.start()
    played.wait(10)
    groups = collector.sample([], 1, Key(0).child("eval"), True, None)
    assert [one.printed for one in collector.outcomes(groups)[1]] == ["eval"]
    evaluated.set()
    thread.join()
    assert [one.printed for one in heard[0]] == ["train"]
    assert collector.outcomes(groups)[1] == [], "it is told once"
