"""The diagonal Fisher information of a policy, and the file that keeps it with its anchor.

    F_i = E_{s ~ D} E_{a ~ pi(.|s)} [(d log pi(a|s) / d theta_i)^2]

The square is of each example's gradient, not of a mean: a batch's mean gradient squared goes to 0 at the
optimum. Over choices it is summed exactly, or one action is drawn; a Gaussian has the closed form
`sum_k (d mu_k / sigma_k)^2 + 2 (d log sigma_k)^2`. Of a language model the example is a text: at each
position a token is drawn from the model, and the gradient of their summed log-prob is squared. (Given the
text the draws are independent and each has an expected gradient of 0, so that is the sum over positions.)

How arXiv 2402.02868 estimates it is not in its repository; the definition here is the one above.

    python -m rlft.retention.fisher CONFIG OUT.safetensors [key=value ...]

writes the file of the configuration's `ewc` term on the machine that this is called on, for models that
the run's driver should not load.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rlft.errors import ConfigError, DataError, UserError
from rlft.policy.distributions import Categoricals, Gaussian
from rlft.seeding import Key
from rlft.types import Strip

_MOST_EXACT = 512
"""Actions up to which one backward pass each is bearable."""


@dataclass(frozen=True, slots=True)
class Fisher:
    """fisher, anchor: float32 by parameter name, of one shape each (from a file: read anew at each
    access, so that whoever goes through them holds one at a time); about: what it was computed from."""

    fisher: Mapping[str, torch.Tensor]
    anchor: Mapping[str, torch.Tensor]
    about: Mapping[str, Any]


# -- computing -----------------------------------------------------------------------------------


def diagonal(
    named: Mapping[str, torch.Tensor], examples: Iterable[Iterable[tuple[Any, torch.Tensor]]]
) -> dict[str, torch.Tensor]:
    """`F` by name. examples: of each, (weight, scalar) pairs; a pair adds `weight (d scalar)^2`."""
    names, parameters = list(named), list(named.values())
    total = [torch.zeros_like(p, dtype=torch.float32) for p in parameters]
    count = 0
    for pairs in examples:
        count += 1
        for weight, scalar in pairs:
            grads = torch.autograd.grad(scalar, parameters, retain_graph=True, allow_unused=True)
            for held, grad in zip(total, grads, strict=True):
                if grad is not None:
                    held.add_(grad.float() ** 2, alpha=float(weight))
    return {name: held / max(count, 1) for name, held in zip(names, total, strict=True)}


def of_choice(
    distribution: Categoricals | Gaussian, params: torch.Tensor, draw: np.random.Generator | None
) -> Iterator[tuple[Any, torch.Tensor]]:
    """The (weight, scalar) pairs of one decision with parameters `[D]`. draw: sample one action, None:
    all of them exactly."""
    if draw is not None:
        noise = torch.from_numpy(distribution.noise(draw, 1))[0]
        action = distribution.sample(params.detach(), noise)
        yield 1.0, distribution.logp(params, action)
        return
    if isinstance(distribution, Gaussian):
        mean, log_std = params.chunk(2, -1)
        for k in range(distribution.actions):
            yield torch.exp(-2 * log_std[k].detach()), mean[k]
            yield 2.0, log_std[k]
        return
    for logits in params.split(distribution.nvec, -1):  # independent choices: no cross terms
        logp = logits.log_softmax(-1)
        for a in range(len(logp)):
            yield logp[a].exp().detach(), logp[a]


def fisher_of_policy(
    policy: Any, strips: Sequence[Strip], states: int, key: Key, exact: bool = True
) -> dict[str, torch.Tensor]:
    """Of a policy that acts, on `states` random steps of `strips` (or all of them). A memory holds what it
    held there, as data."""
    distribution = policy.distribution
    if exact and isinstance(distribution, Categoricals) and distribution.width > _MOST_EXACT:
        raise ConfigError(
            f"retention: ewc: {distribution.width} actions are too many to sum over; set actions: sampled"
        )
    rng = np.random.default_rng(key.seed())
    chosen = sorted(_some([len(s.reward) for s in strips], states, rng))
    actor = dict(actor_parameters(policy, strips[0]))
    draw = None if exact else rng

    def examples() -> Iterator[Iterator[tuple[Any, torch.Tensor]]]:
        for index, strip in enumerate(strips):
            wanted = [t for i, t in chosen if i == index]
            carried = torch.zeros(1, policy.state_size) if policy.state_size else None
            for t in range(wanted[-1] + 1 if wanted else 0):
                if t not in wanted and carried is None:
                    continue
                obs = {name: torch.from_numpy(x[t : t + 1]) for name, x in strip.obs.items()}
                params, _, after = policy.act(obs, carried)
                if t in wanted:
                    yield of_choice(distribution, params[0], draw)
                carried = None if after is None else after.detach()

    return diagonal(actor, examples())


def actor_parameters(policy: Any, strip: Strip) -> Iterator[tuple[str, torch.nn.Parameter]]:
    """The named parameters that the policy's distribution depends on: all but a critic's own."""
    named = [(n, p) for n, p in policy.named_parameters() if p.requires_grad]
    obs = {name: torch.from_numpy(np.array(x[:1])) for name, x in strip.obs.items()}
    yield from reads(policy, obs, named)


def reads(
    policy: Any, obs: Mapping[str, torch.Tensor], named: Sequence[tuple[str, torch.nn.Parameter]]
) -> Iterator[tuple[str, torch.nn.Parameter]]:
    """Those of `named` that the policy's distribution on `obs` `[1, ...]` depends on."""
    state = torch.zeros(1, policy.state_size) if policy.state_size else None
    with torch.enable_grad():
        params, _, _ = policy.act(obs, state)
        grads = torch.autograd.grad(params.sum(), [p for _, p in named], allow_unused=True)
    yield from (pair for pair, grad in zip(named, grads, strict=True) if grad is not None)


def fisher_of_texts(
    model: Any, texts: Sequence[Sequence[int]], key: Key
) -> dict[str, torch.Tensor]:
    """Of a causal language model, on token lists of at least two."""
    named = {n: p for n, p in model.named_parameters() if p.requires_grad}
    generator = torch.Generator().manual_seed(key.seed())

    def examples() -> Iterator[list[tuple[float, torch.Tensor]]]:
        for ids in texts:
            logits = model(input_ids=torch.tensor([list(ids)])).logits[0, :-1].float()
            logp = logits.log_softmax(-1)
            drawn = torch.multinomial(logp.detach().exp(), 1, generator=generator)
            yield [(1.0, logp.gather(1, drawn).sum())]

    return diagonal(named, examples())


def _some(lengths: Sequence[int], count: int, rng: np.random.Generator) -> list[tuple[int, int]]:
    whole = [(i, t) for i, length in enumerate(lengths) for t in range(length)]
    if len(whole) <= count:
        return whole
    return [whole[k] for k in rng.choice(len(whole), count, replace=False)]


# -- the file ------------------------------------------------------------------------------------


def write_fisher(path: Path, found: Fisher) -> None:
    """Writes it whole or not at all. Raises DataError: an entry that is not finite."""
    from safetensors.torch import save_file

    for name, tensor in found.fisher.items():
        _refuse(path, name, tensor, found.anchor[name])
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {f"fisher/{n}": t.contiguous().cpu() for n, t in found.fisher.items()}
    tensors |= {f"anchor/{n}": t.float().contiguous().cpu() for n, t in found.anchor.items()}
    beside = path.with_name(f".{path.name}")
    save_file(tensors, beside, {"about": json.dumps(dict(found.about))})
    beside.replace(path)


def read_fisher(path: str | Path) -> Fisher:
    """Raises DataError: no such file, a damaged one, no anchor for a weight, an entry that is negative or
    not finite."""
    from safetensors import SafetensorError, safe_open

    path = Path(path).expanduser()
    if not path.is_file():
        raise DataError(
            f"{path} is not a file; make it with `python -m rlft.retention.fisher CONFIG {path}`"
        )
    try:
        file: Any = safe_open(path, framework="pt")
        names = list(file.keys())
        about = json.loads((file.metadata() or {}).get("about", "{}"))
        fisher, anchor = (_InFile(file, kind, names) for kind in ("fisher", "anchor"))
        if not fisher:
            raise DataError(f"{path} holds no Fisher; found: {', '.join(names[:5]) or 'nothing'}")
        for name, tensor in fisher.items():
            _refuse(path, name, tensor, anchor.get(name))
    except DataError:
        raise
    except (OSError, ValueError, SafetensorError) as error:
        raise DataError(f"{path} is damaged or no Fisher file ({error}); make it again") from error
    return Fisher(fisher, anchor, about)


class _InFile(Mapping[str, torch.Tensor]):
    """The tensors of one kind in an open file, each read when it is asked for."""

    def __init__(self, file: Any, kind: str, names: Sequence[str]) -> None:
        self._file, self._kind = file, kind
        found = [n.partition("/")[2] for n in names if n.startswith(f"{kind}/")]
        self._names = dict.fromkeys(found)

    def __getitem__(self, name: str) -> torch.Tensor:
        if name not in self._names:
            raise KeyError(name)
        return self._file.get_tensor(f"{self._kind}/{name}")

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, name: object) -> bool:
        return name in self._names


def _refuse(path: Path, name: str, fisher: torch.Tensor, anchor: torch.Tensor | None) -> None:
    if anchor is None or anchor.shape != fisher.shape:
        got = "none" if anchor is None else list(anchor.shape)
        raise DataError(
            f"{path}: {name} has a Fisher {list(fisher.shape)} and the anchor {got}; a penalty "
            f"needs the weights that its Fisher was computed at. Make the file again"
        )
    for what, values in (("Fisher", fisher), ("anchor", anchor)):
        if not bool(torch.isfinite(values).all()):
            bad = int((~torch.isfinite(values)).sum())
            raise DataError(
                f"{path}: the {what} of {name} has {bad} entries that are not finite; make it again, "
                f"from a policy whose outputs are finite"
            )
    if bool((fisher < 0).any()):
        raise DataError(f"{path}: the Fisher of {name} has negative entries; make it again")


def fits(found: Fisher, start: Path, path: str | Path) -> None:
    """Raises ConfigError: weights that the start policy does not have, or has in another shape."""
    from safetensors import safe_open

    shapes: dict[str, list[int]] = {}
    for file in sorted(start.glob("*.safetensors")):
        with safe_open(file, framework="pt") as held:
            shapes |= {n: list(held.get_slice(n).get_shape()) for n in held.keys()}  # noqa: SIM118
    for name, tensor in found.fisher.items():
        if shapes.get(name) != list(tensor.shape):
            raise ConfigError(
                f"{path} is of another policy: its {name} is {list(tensor.shape)}, that of {start} "
                f"{shapes.get(name, 'missing')}; make it from the policy that this run starts from"
            )


def make_fisher(term: Any, place: Any, path: Path) -> None:
    """Computes the Fisher of an `ewc` term at the start policy and writes it to `path`."""
    key = Key(place.cfg.seed).child("fisher", term.called)
    about = {"states": term.states, "path": term.path, "start": str(place.start)}
    if place.acts:
        from rlft.cloning import strips_of
        from rlft.policy.actor_critic import load_policy

        one = place.env.make()
        policy = load_policy(place.start, one)
        one.close()
        strips = strips_of(term.path, place.env)
        fisher = fisher_of_policy(policy, strips, term.states, key, term.actions == "exact")
        anchor = {n: p.detach() for n, p in policy.named_parameters() if n in fisher}
        write_fisher(path, Fisher(fisher, anchor, {**about, "actions": term.actions}))
        return
    from transformers import AutoModelForCausalLM

    from rlft.retention.texts import token_lists

    model: Any = AutoModelForCausalLM.from_pretrained(str(place.start), dtype=torch.float32).eval()
    longest = place.cfg.model.max_length
    texts = token_lists(
        term.path, place.start, longest, limit=term.states, drawn=key.child("texts")
    )
    fisher = fisher_of_texts(model, texts, key)
    anchor = {n: p.detach() for n, p in model.named_parameters() if n in fisher}
    write_fisher(path, Fisher(fisher, anchor, {**about, "actions": "sampled"}))


def main(argv: Sequence[str] | None = None, say: Callable[[str], None] = print) -> int:
    """The command. Returns the exit code: 2 where the input cannot be used."""
    words = list(sys.argv[1:] if argv is None else argv)
    if len(words) < 2:
        print(
            "usage: python -m rlft.retention.fisher CONFIG OUT.safetensors [key=value ...]",
            file=sys.stderr,
        )
        return 2
    try:
        from rlft.config import load_config
        from rlft.policy.start import policy_folder, start_folder
        from rlft.retention.ewc import EWC
        from rlft.retention.term import Place, retention_of

        cfg = load_config(words[0], words[2:])
        terms = [t for t in retention_of(cfg) if isinstance(t, EWC) and t.path is not None]
        if not terms:
            raise ConfigError(f"{words[0]} has no retention term `ewc` with a `path`")
        from rlft.check import check_plugins

        algo, env = check_plugins(cfg)
        out = Path(words[1])
        start = policy_folder(cfg, env, out.parent) if algo.acts else start_folder(cfg, out.parent)
        make_fisher(terms[0], Place(cfg, start, out.parent, env, algo.acts), out)
        found = read_fisher(words[1])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    count = sum(t.numel() for t in found.fisher.values())
    say(f"{words[1]}: {count:,} weights, mean {_mean(found.fisher):.3g}")
    return 0


def _mean(tensors: Mapping[str, torch.Tensor]) -> float:
    total = sum(float(t.double().sum()) for t in tensors.values())
    return total / max(1, sum(t.numel() for t in tensors.values()))


if __name__ == "__main__":
    sys.exit(main())
