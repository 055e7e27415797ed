"""Policies of environments: from observations to a distribution over actions, and a value.

`act` takes one step of many environments, `forward` takes stretches of episodes `[B, T]` at once; on the
same observations they say the same to rounding. The observation's parts are encoded each in its way
(images by convolutions, words by an embedding, everything else flat), joined, and read by a memory, if
there is one, and two heads.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from gymnasium import spaces
from torch import nn

from rlft.errors import ConfigError
from rlft.policy.distributions import Categoricals, Gaussian, distribution_of
from rlft.policy.memory import CELLS
from rlft.policy.observed import Part, parts_of

Obs = Mapping[str, torch.Tensor]
"""Observation arrays by name, with one or two leading dimensions: `[N, ...]` or `[B, T, ...]`."""


class Normaliser(nn.Module):
    """Running mean and deviation of one part of observations, as buffers: published with the weights.

    They change between fits alone, so a sample and what learns from it see the same numbers.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("var", torch.ones(size))
        self.register_buffer("count", torch.zeros(1))
        self.mean: torch.Tensor
        self.var: torch.Tensor
        self.count: torch.Tensor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return ((x - self.mean) / (self.var + 1e-8).sqrt()).clamp(-10, 10)

    @torch.no_grad()
    def take_in(self, x_ND: torch.Tensor) -> None:
        """Adds `[N, D]` to the running numbers."""
        x_ND = x_ND.double()
        self.merge(len(x_ND), x_ND.mean(0), x_ND.var(0, unbiased=False))

    @torch.no_grad()
    def merge(self, n: float, mean: torch.Tensor, var: torch.Tensor) -> None:
        """Adds `n` numbers of this mean and variance, float64 `[D]` (Chan's parallel formula)."""
        m = self.count.double()
        delta, total = mean - self.mean.double(), m + n
        both = self.var.double() * m + var * n + delta**2 * m * n / total
        self.mean.copy_(self.mean.double() + delta * n / total)
        self.var.copy_(both / total)
        self.count.copy_(total)


class Encoder(nn.Module):
    """All parts of an observation as one vector `[N, width]`."""

    def __init__(
        self, parts: tuple[Part, ...], width: int, hidden: tuple[int, ...], channels: tuple[int, ...],
        activation: str, normalise: bool,
    ) -> None:  # fmt: skip
        super().__init__()
        self.parts = parts
        self.pieces = nn.ModuleDict()
        joined = 0
        for part in parts:
            if part.kind == "image" and channels:
                piece: nn.Module = _Convolutions(part, channels)
                joined += int(piece.width)  # type: ignore[arg-type]
            elif part.kind == "words":
                piece = _Words(part)
                joined += int(piece.width)
            else:
                wanted = normalise and part.kind == "numbers"
                piece = Normaliser(part.size) if wanted else nn.Identity()
                joined += part.size
            self.pieces[_module_name(part.name)] = piece
        layers: list[nn.Module] = []
        for size in (*hidden, width) if width else hidden:
            layers += [_layer(joined, size, 2**0.5), _ACTIVATIONS[activation]()]
            joined = size
        self.body, self.width = nn.Sequential(*layers), joined

    def forward(self, obs: Obs) -> torch.Tensor:
        found = []
        for part, piece in zip(self.parts, self.pieces.values(), strict=True):
            x = obs[part.name]
            if (part.kind == "image" and isinstance(piece, _Convolutions)) or part.kind == "words":
                found.append(piece(x))
            else:
                found.append(piece(part.flat(x)))
        return self.body(found[0] if len(found) == 1 else torch.cat(found, -1))

    def take_in(self, obs: Obs) -> None:
        for part, piece in zip(self.parts, self.pieces.values(), strict=True):
            if isinstance(piece, Normaliser):
                piece.take_in(part.flat(obs[part.name]))


def _module_name(part: str) -> str:
    """What torch lets a module be called: not a dot, not nothing, not what every ModuleDict has."""
    name = part.replace(".", "·")
    return f"·{name}" if not name or hasattr(nn.ModuleDict, name) else name


class _Words(nn.Module):
    """A sentence of K word numbers, 0 for none: the sum over its words of what each is at its place, so
    that their order matters (put the ball next to the box)."""

    def __init__(self, part: Part, width: int = 64) -> None:
        super().__init__()
        self.width = width
        self.word = nn.Embedding(part.high, width, padding_idx=0)
        self.place = nn.Parameter(torch.randn(part.shape[0], width))
        self.both = _layer(width, width, 2**0.5)

    def forward(self, x_NK: torch.Tensor) -> torch.Tensor:
        # Steps of an episode share their sentence: each is read once.
        said, which = torch.unique(x_NK.long(), dim=0, return_inverse=True)
        read = torch.relu(self.both(self.word(said) + self.place))
        return (read * (said != 0)[..., None]).sum(1)[which]


class _Convolutions(nn.Module):
    """Small images (a grid of cells) by 3x3 convolutions, larger ones by the strides of Nature's DQN."""

    def __init__(self, part: Part, channels: tuple[int, ...]) -> None:
        super().__init__()
        self.part = part
        sides, before = part.shape[:2], part.shape[2]
        if part.channels_first:
            sides, before = part.shape[1:], part.shape[0]
        frames = before
        small = min(sides) < 36
        plans = [(3, 1)] * len(channels) if small else [(8, 4), (4, 2), *[(3, 1)] * len(channels)]
        layers: list[nn.Module] = []
        for size, (kernel, stride) in zip(channels, plans, strict=False):
            layers += [
                nn.Conv2d(before, size, kernel, stride, padding=1 if small else 0),
                nn.ReLU(),
            ]
            before = size
        self.net = nn.Sequential(*layers, nn.Flatten())
        with torch.no_grad():
            self.width = self.net(torch.zeros(1, frames, *sides)).shape[1]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.part.scaled(x)
        return self.net(x if self.part.channels_first else x.movedim(-1, 1))


class ActorCritic(nn.Module):
    """A policy and its critic, on one trunk or on two.

    memory: width of a GRU or LSTM (`cell`) between encoder and heads, 0 for none (only with one trunk);
    skip: the heads read what the memory read, too.
    encoder: makes a module in place of `Encoder`, with `width`, `forward(obs) -> [N, width]` and `take_in`.
    context: makes another memory, with `width`, `state_size` and `read`, as those of memory.py.
    normalise_returns: the value head speaks of returns by their running mean and deviation; values that
    leave the policy are returns again.
    """

    def __init__(
        self,
        observations: spaces.Space,
        actions: spaces.Space,
        *,
        width: int = 0,
        hidden: tuple[int, ...] = (),
        channels: tuple[int, ...] = (),
        activation: str = "tanh",
        memory: int = 0,
        cell: Literal["gru", "lstm"] = "gru",
        skip: bool = False,
        shared: bool = False,
        normalise: bool = False,
        normalise_returns: bool = False,
        log_std: float = 0.0,
        encoder: Callable[[], Any] | None = None,
        context: Callable[[], Any] | None = None,
    ) -> None:
        super().__init__()
        self.distribution: Categoricals | Gaussian = distribution_of(actions)
        make = encoder or (
            lambda: Encoder(parts_of(observations), width, hidden, channels, activation, normalise)
        )
        self.policy_encoder = make()
        self.memory: Any = context() if context else None
        if memory:
            self.memory = CELLS[cell](self.policy_encoder.width, memory)
        self.value_encoder = None if shared or self.memory is not None else make()
        read = self.policy_encoder.width if self.memory is None else self.memory.width
        self._skip = skip and memory > 0
        if self._skip:
            read += self.policy_encoder.width
        gaussian = isinstance(self.distribution, Gaussian)
        out = self.distribution.actions if gaussian else self.distribution.width
        self.policy_head = _layer(read, out, 0.01)
        self.log_std = nn.Parameter(torch.full((out,), log_std)) if gaussian else None
        self.value_head = _layer(read, 1, 1.0)
        self.returns = Normaliser(1) if normalise_returns else None

    @property
    def state_size(self) -> int:
        """Numbers that an episode carries from step to step."""
        return self.memory.state_size if self.memory is not None else 0

    @property
    def value_scale(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Running mean and deviation of returns, `[1]` each, if they are normalised."""
        if self.returns is None:
            return None
        return self.returns.mean, (self.returns.var + 1e-8).sqrt()

    def value_parameters(self) -> list[nn.Parameter]:
        """What the value alone reads: its head, and an encoder if it has one of its own."""
        own = [] if self.value_encoder is None else [*self.value_encoder.parameters()]
        return [*own, *self.value_head.parameters()]

    @property
    def critic_apart(self) -> bool:
        """Whether the critic shares nothing with the policy, so that it can be asked alone. Of a class that
        acts or judges in its own way it cannot."""
        own = type(self)
        return (
            self.value_encoder is not None
            and own.act is ActorCritic.act
            and own._value is ActorCritic._value
            and own._params is ActorCritic._params
        )

    def choose(
        self, obs: Obs, state: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """As `act`, but a critic apart is not asked."""
        if self.critic_apart:
            return self._params(self.policy_encoder(obs)), None, state
        return self.act(obs, state)

    def value(self, obs: Obs) -> torch.Tensor:
        """Values `[N]` by a critic apart."""
        assert self.critic_apart
        return self._value(obs, torch.empty(0))

    def act(
        self, obs: Obs, state: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """One step of N environments: parameters `[N, D]`, values `[N]`, and the next state `[N, H]`."""
        hidden = self.policy_encoder(obs)
        if self.memory is not None:
            assert state is not None
            read, state = self.memory.read(hidden[:, None], state)
            hidden = self._read(read[:, 0], hidden)
        return self._params(hidden), self._value(obs, hidden), state

    def forward(
        self,
        obs: Obs,
        state: torch.Tensor | None = None,
        *,
        real: torch.Tensor | None = None,
        carry: bool = False,
        critic_only: bool = False,
    ) -> tuple[torch.Tensor, ...]:
        """Stretches of episodes `[B, T]`, each from its state `[B, H]`: parameters `[B, T, D]` and values
        `[B, T]`. real: int64 `[N]`, which of the B T steps are some of an episode, None: all; the others,
        after their episode's end, are 0 and not computed, but by a recurrent memory. carry: also the states
        `[B, H]` after T steps, of a policy with a memory; critic_only: nothing but what the value alone
        reads gets a gradient."""
        rows, steps = next(iter(obs.values())).shape[:2]
        flat = {name: x.flatten(0, 1) for name, x in obs.items()}
        if real is not None:
            flat = {name: x[real] for name, x in flat.items()}

        def placed(x: torch.Tensor) -> torch.Tensor:
            if real is not None:
                x = x.new_zeros(rows * steps, *x.shape[1:]).index_copy(0, real, x)
            return x.view(rows, steps, *x.shape[1:])

        with torch.set_grad_enabled(torch.is_grad_enabled() and not critic_only):
            hidden = self.policy_encoder(flat)
            if self.memory is not None:
                assert state is not None
                some = (real,) if real is not None and hasattr(self.memory, "reads_some") else ()
                read, state = self.memory.read(placed(hidden), state, *some)
                read = read.flatten(0, 1)
                hidden = self._read(read if real is None else read[real], hidden)
            params = placed(self._params(hidden))
        value = placed(self._value(flat, hidden))
        return (params, value, state) if carry and state is not None else (params, value)

    def take_in(self, obs: Obs) -> None:
        """Lets the observations `[N, ...]` into the running numbers that normalise later ones."""
        self.policy_encoder.take_in(obs)
        if self.value_encoder is not None:
            self.value_encoder.take_in(obs)

    def _read(self, memory: torch.Tensor, encoded: torch.Tensor) -> torch.Tensor:
        return torch.cat([memory, encoded], -1) if self._skip else memory

    def _params(self, hidden: torch.Tensor) -> torch.Tensor:
        out = self.policy_head(hidden)
        if self.log_std is None:
            return out
        return torch.cat([out, self.log_std.expand_as(out)], -1)

    def _value(self, obs: Obs, hidden: torch.Tensor) -> torch.Tensor:
        read = hidden if self.value_encoder is None else self.value_encoder(obs)
        value = self.value_head(read).squeeze(-1)
        if self.value_scale is None:
            return value
        mean, deviation = self.value_scale
        return mean + deviation * value


_ACTIVATIONS = {"tanh": nn.Tanh, "relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU}


def _layer(inputs: int, outputs: int, gain: float) -> nn.Linear:
    """Orthogonal weights and no bias, as every PPO that works starts (the 37 details, no. 2)."""
    layer = nn.Linear(inputs, outputs)
    nn.init.orthogonal_(layer.weight, gain)
    nn.init.zeros_(layer.bias)
    return layer


def load_policy(folder: str | Path, env: Any) -> ActorCritic:
    """The policy saved in `folder`, for the spaces of the Gymnasium environment `env`.

    Raises ConfigError: no such folder, a damaged one, or weights that belong to other spaces.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from rlft import registry

    folder = Path(folder).expanduser()
    if not (folder / "policy.json").is_file():
        raise ConfigError(
            f"{str(folder)!r} holds no policy of an environment: no policy.json in it"
        )
    try:
        said = json.loads((folder / "policy.json").read_text())
        spec = said["network"]
        weights = load_file(folder / "model.safetensors")
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise ConfigError(
            f"the policy in {str(folder)!r} is damaged ({type(error).__name__}: {error}); copy or train it "
            f"again"
        ) from error
    network = registry.build("network", spec)
    policy = network(env.observation_space, env.action_space)
    for name in dict(policy.named_buffers()).keys() - policy.state_dict().keys():
        weights.pop(name, None)  # what a policy makes itself; runs of before saved it
    wrong = [
        f"{name}: saved {list(weights[name].shape) if name in weights else 'nothing'}, expected "
        f"{list(tensor.shape)}"
        for name, tensor in policy.state_dict().items()
        if name not in weights or weights[name].shape != tensor.shape
    ]
    if wrong:
        raise ConfigError(
            f"the policy in {str(folder)!r} belongs to other observations or actions "
            f"({said['observations']}; {said['actions']}) than this environment's "
            f"({env.observation_space}; {env.action_space}): {wrong[0]}"
        )
    if not _same_actions(said.get("actions"), env.action_space):  # as many of them, and others
        raise ConfigError(
            f"the policy in {str(folder)!r} takes other actions ({said.get('actions')}) than this "
            f"environment has ({env.action_space}); use an environment with the same ones"
        )
    policy.load_state_dict(weights)
    return policy


def _same_actions(said: str | None, space: spaces.Space) -> bool:
    """Whether a saved policy's actions are those of `space`. Of a Box the type is how they are handed over,
    not what they are."""
    ours = str(space)
    if said is not None and isinstance(space, spaces.Box):
        said, ours = said.rpartition(", ")[0], ours.rpartition(", ")[0]
    return said == ours


def new_policy(spec: str | Mapping[str, Any], env: Any, seed: int, folder: Path) -> Path:
    """A fresh policy for the spaces of `env`, saved as `folder`, which is returned."""
    from safetensors.torch import save_file

    from rlft import registry

    network = registry.build("network", spec)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        policy = network(env.observation_space, env.action_space)
    beside = folder.with_name(f".{folder.name}")
    beside.mkdir(parents=True, exist_ok=True)
    save_file(
        {n: t.contiguous() for n, t in policy.state_dict().items()}, beside / "model.safetensors"
    )
    said = {
        "network": {"name": spec} if isinstance(spec, str) else dict(spec),
        "observations": str(env.observation_space),
        "actions": str(env.action_space),
    }
    (beside / "policy.json").write_text(json.dumps(said, indent=1) + "\n")
    return beside.rename(folder)


def as_tensors(obs: Mapping[str, np.ndarray], device: torch.device) -> dict[str, torch.Tensor]:
    """Observation arrays on `device`; on a CPU without a copy."""
    return {name: torch.from_numpy(x).to(device) for name, x in obs.items()}
