"""Every error a user can meet. Each says what was got, what was expected and what to do.

`UserError` and its children mean *the input is wrong*: the command line prints the message without
a traceback and exits with 2. The others mean *something broke while running*: exit code 1, with the
traceback. All are picklable, so they cross process boundaries unchanged: keep their `args` plain.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class RlftError(Exception):
    """Root of the family."""


class UserError(RlftError, ValueError):
    """The input cannot be used; nothing was lost. Exit code 2."""


class ConfigError(UserError):
    """A configuration key or value is wrong."""


class PluginError(UserError, ImportError):
    """A plug-in (`module:attr`, `file.py:attr` or a short name) could not be used."""


class DataError(UserError):
    """A data file, row or prompt cannot be used."""


class ResourceError(UserError):
    """The cluster or machine does not have what the configuration asks for."""


class CheckpointError(UserError, OSError):
    """A checkpoint cannot be written or read."""


class DeadlineExceeded(RlftError, TimeoutError):
    """A named wait passed its deadline."""


class ActorFailed(RlftError, RuntimeError):
    """An actor died or raised; the message names it and holds its traceback."""


class ActorDied(ActorFailed):
    """The process of an actor is gone or frozen: its work was lost, and may be done again."""


class SourceLost(ActorFailed):
    """What an actor needs is gone with the process that made it. No `ActorDied`: a new actor in its place
    helps nothing."""


class RecoveryFailed(RlftError, RuntimeError):
    """Something broke again and again, more often than `recovery.max_restarts` allows."""


class Abandoned(RlftError, RuntimeError):
    """A wait was given up because the loop that it served has ended."""


class RewardFailed(RlftError, RuntimeError):
    """Too many reward calls raised; the message holds the first traceback."""


class EpisodesFailed(RlftError, RuntimeError):
    """Too many episodes ended because the environment failed; the message holds the first traceback."""


class WeightsMismatch(RlftError, RuntimeError):
    """What an engine holds is not what the learner published."""


class NonFinite(RlftError, ArithmeticError):
    """The loss or gradient was not finite for several steps in a row."""


class GuardStop(RlftError, RuntimeError):
    """A guard ended the run: the signal that it learns from stayed away. A checkpoint was saved."""


class Invalid(Exception):
    """Raised by a reward function: this completion has no value, and why.

    Counted with its reason and given the configured score; unlike any other exception it is not a
    failure of the reward itself.
    """


def did_you_mean(got: str, known: Iterable[str]) -> str:
    """Returns ` Did you mean 'x'?` for the nearest of `known`, or an empty string."""
    near = difflib.get_close_matches(got, list(known), n=1, cutoff=0.6)
    return f" Did you mean {near[0]!r}?" if near else ""
