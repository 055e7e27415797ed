"""What a retention term owes the framework, and the terms of a configuration."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Self

from rlft import registry
from rlft.algo import Algo
from rlft.config import Config
from rlft.errors import ConfigError
from rlft.types import Term


@dataclass(frozen=True, slots=True)
class Place:
    """Where a run is prepared. start: the folder of the policy it starts from; folder: the run's own;
    env: the environment plug-in; acts: whether its policy acts."""

    cfg: Config
    start: Path
    folder: Path
    env: Any
    acts: bool


class Retention:
    """Base of retention terms: frozen dataclasses with a `coef`.

    acting, writing: for which kinds of policy there is such a term.
    """

    acting: ClassVar[bool] = True
    writing: ClassVar[bool] = True

    def term(self) -> Term:
        """The summand of the objective."""
        raise NotImplementedError

    def check(self, cfg: Config, env: Any, acts: bool) -> None:
        """Raises ConfigError or DataError for what can be known to be wrong before any work starts."""

    def prepared(self, place: Place) -> Self:
        """The same with every path filled in, after what is made once for a run has been made in its
        folder. Raises ConfigError or DataError."""
        return self


def retention_of(cfg: Config) -> list[Retention]:
    """The retention terms of a configuration. Raises ConfigError or PluginError."""
    found = []
    for spec in cfg.retention:
        one = registry.build("retention", spec)
        if not isinstance(one, Retention):
            raise ConfigError(
                f"retention: {spec!r:.80} made a {type(one).__name__}, expected a "
                f"rlft.retention.term.Retention"
            )
        found.append(one)
    return found


def terms_of(cfg: Config, algo: Algo) -> tuple[Term, ...]:
    """The algorithm's own terms and, after them, those of retention."""
    return (*algo.terms, *(one.term() for one in retention_of(cfg)))


def needs_of(cfg: Config) -> frozenset[str]:
    """Optional fields of a batch that retention terms read."""
    return frozenset().union(*(one.term().needs for one in retention_of(cfg)))


def check_retention(cfg: Config, algo: Algo, env: Any) -> None:
    """Raises ConfigError or DataError: a term of another kind of policy, two of one name or two that
    need a teacher on rollouts, a teacher or buffer that cannot be used."""
    if algo.by_noise and (cfg.retention or cfg.learner.freeze):
        raise ConfigError(
            f"algo {type(algo).__name__} has no gradient that retention or learner.freeze could change; "
            f"remove them (its own `decay` pulls towards the start)"
        )
    kept = retention_of(cfg)
    if "score" in algo.needs and any(one.term().module != "weights" for one in kept):
        raise ConfigError(
            "retention: a reward model writes nothing to keep; use l2 or ewc, or none"
        )
    names = [one.term().name for one in kept]
    for name in names:
        if names.count(name) > 1 or name in [t.name for t in algo.terms]:
            raise ConfigError(
                f"retention: two terms are called {name!r}; give each its own, e.g. "
                f"{{name: {name}, called: {name}_2}}"
            )
    if sum("teacher" in one.term().needs for one in kept) > 1:
        raise ConfigError("retention: two terms ask a teacher on rollouts; keep one")
    for one in kept:
        if not (one.acting if algo.acts else one.writing):
            what = "acts" if algo.acts else "writes"
            raise ConfigError(
                f"retention: {type(one).__name__} is not for a policy that {what}; remove it"
            )
        one.check(cfg, env, algo.acts)
    if algo.acts:
        _refuse_middles(cfg, algo, kept, env)


def _refuse_middles(cfg: Config, algo: Algo, kept: Sequence[Any], env: Any) -> None:
    """Raises ConfigError: a teacher with a memory would be asked about episodes from their middle on."""
    states = getattr(algo, "rollout_states", 0)
    if not states:
        return
    for teacher in (getattr(one, "teacher", None) for one in kept if "teacher" in one.term().needs):
        if _remembers(cfg, env, teacher):
            raise ConfigError(
                f"retention: a teacher with a memory cannot be asked about vines, which begin in the "
                f"middle of episodes that it has not seen; set algo.rollout_states=0 (it is {states}), "
                f"take one without a memory, or leave it out"
            )


def _remembers(cfg: Config, env: Any, teacher: str | None) -> bool:
    """Whether a policy has a memory: the one in the folder `teacher`, else the one that the run starts
    from, as far as that is known before it starts."""
    from rlft.policy.actor_critic import load_policy

    folder = teacher if teacher is not None else cfg.model.path
    one = env.make()
    try:
        if folder is not None:
            return bool(load_policy(folder, one).state_size)
        if cfg.model.build is None:
            return False
        network = registry.build("network", cfg.model.build)
        return bool(network(one.observation_space, one.action_space).state_size)
    finally:
        one.close()


def prepared(cfg: Config, place: Place) -> Config:
    """`cfg` with its retention terms prepared, their paths filled in."""
    return cfg.model_copy(
        update={"retention": [spec_of(name, one.prepared(place)) for name, one in _named(cfg)]}
    )


def spec_of(name: str, one: Retention) -> dict[str, Any]:
    """What `retention` says of a term: its name and all of its keys."""
    from pydantic import TypeAdapter

    keys = TypeAdapter(type(one)).dump_python(one, mode="json", by_alias=True)
    return {"name": name, **keys}


def _named(cfg: Config) -> Iterable[tuple[str, Retention]]:
    names = [spec if isinstance(spec, str) else str(spec["name"]) for spec in cfg.retention]
    return zip(names, retention_of(cfg), strict=True)


def filled(one: Any, **paths: Path | str | None) -> Any:
    """`one` with those of its paths that are None set to these."""
    new = {k: str(v) for k, v in paths.items() if getattr(one, k) is None and v is not None}
    return replace(one, **new)


def teacher_fits(path: str, env: Any, what: str) -> None:
    """Raises ConfigError: no policy at `path`, or one of other observations or actions than `env`."""
    from rlft.policy.actor_critic import load_policy

    one = env.make()
    try:
        load_policy(Path(path).expanduser(), one)
    except ConfigError as error:
        raise ConfigError(
            f"{what}: {error}. Give the `model` folder of a checkpoint of the same environment"
        ) from None
    finally:
        one.close()


def teacher_writes(path: str, cfg: Config, what: str) -> None:
    """Raises ConfigError: no language model at `path`, or one that reads other tokens than the one that a
    run starts from, if that is there already."""
    vocabulary_fits(path, None, what)
    if cfg.model.path is None or cfg.warm_start is not None:
        return
    start = Path(cfg.model.path).expanduser()
    if (start / "config.json").is_file():
        same_vocabulary(path, start, what)


def vocabulary_fits(path: str, student: int | None, what: str) -> None:
    """Raises ConfigError: no language model at `path`, or one of another size of vocabulary than
    `student`."""
    folder = Path(path).expanduser()
    if not (folder / "config.json").is_file():
        raise ConfigError(f"{what}: {path!r} is no folder of a language model (no config.json)")
    size = _vocabulary(folder)
    if student is not None and size != student:
        raise ConfigError(
            f"{what}: the teacher in {path!r} has a vocabulary of {size}, the policy of {student}; "
            f"they must share one tokenizer"
        )


def same_vocabulary(path: str, start: Path, what: str) -> None:
    """Raises ConfigError: a teacher at `path` that reads other tokens than the start model, or none. Where
    both have a `tokenizer.json`, tokens that both have are compared, but for special ones, which are named
    as one likes."""
    vocabulary_fits(path, _vocabulary(start), what)
    theirs, ours = (_tokens(Path(folder).expanduser()) for folder in (path, start))
    differ = [n for n in theirs.keys() & ours.keys() if theirs[n] != ours[n]]
    if differ:
        place = min(differ)
        raise ConfigError(
            f"{what}: the teacher in {path!r} has another tokenizer than the policy: token {place} is "
            f"{theirs[place]!r} there and {ours[place]!r} here; they must share one"
        )


def _vocabulary(folder: Path) -> int | None:
    return json.loads((folder / "config.json").read_text()).get("vocab_size")


def _tokens(folder: Path) -> dict[int, str]:
    """The tokens of a tokenizer by their number, as far as they are in a file that is known here."""
    file = folder / "tokenizer.json"
    if not file.is_file():
        return {}
    said = json.loads(file.read_text("utf-8"))
    known = said.get("model", {}).get("vocab", {})
    pairs = known.items() if isinstance(known, dict) else ((t[0], n) for n, t in enumerate(known))
    found = {number: token for token, number in pairs}
    for one in said.get("added_tokens", ()):
        if one.get("special"):
            found.pop(one["id"], None)
        else:
            found[one["id"]] = one["content"]
    return found
