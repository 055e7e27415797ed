"""The environment of a policy that writes, as what reward processes run: open episodes, asked by turns.

It is a reward function whose answer has a text, so all that holds for rewards holds for it: it runs in a
process of its own, has a time limit a turn, and what it raises is data.

An episode is what was said in it. A process that lost its episodes (one of them hung, and it was
killed) plays them again from that, a turn a call, so that each call has its time to itself.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

from rlft import registry
from rlft.types import Attempt, Task


class Dialogues:
    """env: the plug-in, as the configuration names it.

    Called with a trajectory that ends with the policy's turn, it answers `{"reply": text, "reward": of
    this turn, "over": 1.0 if the episode is, "behind": turns still to be played again, ...}` with further
    named parts of the environment's own. A trajectory that is `truncated` is given up.
    """

    def __init__(self, env: Any) -> None:
        self._spec = env
        self._open: dict[tuple[str, str], tuple[Any, int]] = {}
        self._env: Any = None

    def load(self) -> None:
        """Makes the environment: where it runs, not where a configuration is checked."""
        self._env = registry.build("env", self._spec)

    def __call__(self, trajectory: Attempt, task: Task) -> dict[str, Any]:
        before = 1 if isinstance(task.prompt, str) else len(task.prompt)
        said = [str(m["content"]) for m in trajectory.messages[before::2]]
        key = (task.id, trajectory.id)
        dialogue, turns = self._open.pop(key, (None, 0))
        if trajectory.truncated:
            _close(dialogue)
            return {"reward": 0.0}
        if dialogue is None or turns >= len(said):
            dialogue, turns = self._env.dialogue(task, trajectory.seed), 0
        try:
            reply, reward, over, parts = _read(dialogue.reply(said[turns]))
        except BaseException:
            with contextlib.suppress(Exception):  # what comes first is told
                _close(dialogue)
            raise
        behind = len(said) - turns - 1
        if behind and over:
            raise RuntimeError(
                f"the episode was played again and ended after turn {turns + 1} of {len(said)}: the "
                f"environment does not answer the same when it is told the same (task, seed, texts)"
            )
        if over:
            _close(dialogue)
        else:
            self._open[key] = (dialogue, turns + 1)
        return {
            **parts,
            "reply": reply,
            "reward": reward,
            "over": float(over),
            "behind": float(behind),
        }


def _read(answer: Any) -> tuple[str, Any, bool, Mapping[str, Any]]:
    """What `reply` returned: `(text, reward, done)`, or with named numbers as a fourth."""
    if not isinstance(answer, tuple) or len(answer) not in (3, 4):
        raise TypeError(
            f"reply returned {answer!r:.80}; expected (text, reward, done) or (text, reward, done, parts)"
        )
    text, reward, done, *parts = answer
    if not isinstance(text, str):
        raise TypeError(f"reply returned {text!r:.80} as its text; expected a string")
    named = dict(parts[0]) if parts else {}
    taken = sorted({"reward", "over", "behind", "reply", "steps"} & named.keys())
    if taken:
        raise ValueError(f"reply named a part {taken[0]!r}, which has a meaning here; rename it")
    return text, reward, bool(done), named


def _close(dialogue: Any) -> None:
    close = getattr(dialogue, "close", None)
    if callable(close):
        close()
