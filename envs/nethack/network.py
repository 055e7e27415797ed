"""Policies of NetHack: encoders of the screen, the message, the statistics and the action before, an LSTM,
and two heads; sizes by configuration, from half a million parameters to the paper's 33 million.

What is encoded is what arXiv 2402.02868's policy sees (that of "Scaling Laws for Imitation Learning in
Single-Agent Games", arXiv 2307.09423): the screen by residual convolutions, message and statistics by
perceptrons, the previous action by an embedding. Departures: the screen's first layer is a patch of cells
over an embedding of each (character, colour) pair, in place of a convolution over rendered pixels, which
costs several times more; the surroundings of the hero are read cell by cell besides.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import torch
from gymnasium import spaces
from pydantic import Field
from torch import nn
from torch.nn import functional as F

from rlft.errors import ConfigError
from rlft.policy.actor_critic import ActorCritic

Size = Annotated[int, Field(gt=0)]
Obs = Mapping[str, torch.Tensor]

ROWS, COLUMNS = 24, 80
_GLYPHS = 128 * 16
"""Pairs of a character and one of NetHack's 16 colours."""
_BLANK = 32 * 16
_HUNGER, _CAPACITY, _CONDITIONS = 7, 6, 13
_STATISTICS = 27 + 2 + _HUNGER + _CAPACITY + _CONDITIONS + 2


@dataclass(frozen=True)
class NetHackNet:
    """embedding: width of a (character, colour) pair; patch: cells of the first layer, rows and columns;
    channels: of each stage, whose first layer halves the picture; blocks: residual blocks of a stage;
    screen: width that the picture ends in; crop: side of the square around the hero that is read cell by
    cell, 0: none; around: width that it ends in; message, statistics, action: widths of those; memory:
    width of the LSTM, 0: none; normalise_returns: the critic learns returns by their running mean and
    deviation.
    """

    embedding: Size = 8
    patch: tuple[Size, Size] = (4, 4)
    channels: tuple[Size, ...] = (32,)
    blocks: Annotated[int, Field(ge=0)] = 1
    screen: Size = 96
    crop: Annotated[int, Field(ge=0, le=21)] = 9
    around: Size = 64
    message: Size = 64
    statistics: Size = 64
    action: Size = 16
    memory: Annotated[int, Field(ge=0)] = 144
    normalise_returns: bool = True

    def __call__(self, observations: spaces.Space, actions: spaces.Space) -> ActorCritic:
        if not isinstance(observations, spaces.Dict) or "tty_chars" not in observations.spaces:
            raise ConfigError(
                f"network NetHackNet reads the observations of `env: nethack`, got {observations!r:.100}"
            )
        if ROWS % self.patch[0] or COLUMNS % self.patch[1]:
            raise ConfigError(
                f"patch={list(self.patch)} must divide {ROWS} rows and {COLUMNS} columns"
            )
        if self.crop % 2 == 0 and self.crop:
            raise ConfigError(f"crop={self.crop} must be odd: the hero stands in its middle")
        return ActorCritic(
            observations,
            actions,
            shared=True,
            memory=self.memory,
            cell="lstm",
            normalise_returns=self.normalise_returns,
            encoder=lambda: _Encoder(self, int(observations["prev_action"].n)),
        )


class _Encoder(nn.Module):
    """All of an observation as one vector `[N, width]`."""

    def __init__(self, net: NetHackNet, num_actions: int) -> None:
        super().__init__()
        self.crop, self.patch = net.crop, net.patch
        # What is blank, most of a screen, is 0 and costs no gradient.
        self.glyph = nn.Embedding(_GLYPHS, net.embedding, padding_idx=_BLANK)
        self.first = nn.Linear(net.patch[0] * net.patch[1] * net.embedding, net.channels[0])
        self.grid = (ROWS // net.patch[0], COLUMNS // net.patch[1])
        stages: list[nn.Module] = []
        rows, columns = self.grid
        before = net.channels[0]
        for width in net.channels:
            stages.append(nn.Conv2d(before, width, 3, stride=2, padding=1))
            stages += [_Residual(width) for _ in range(net.blocks)]
            rows, columns, before = (rows + 1) // 2, (columns + 1) // 2, width
        self.stages = nn.Sequential(*stages)
        self.screen = nn.Linear(rows * columns * before, net.screen)
        self.around = nn.Linear(net.crop**2 * net.embedding, net.around) if net.crop else None
        self.letters = nn.Embedding(128, net.embedding)
        self.message = _perceptron(COLUMNS * net.embedding, net.message)
        self.statistics = _perceptron(_STATISTICS, net.statistics)
        self.action = nn.Embedding(num_actions, net.action)
        around = net.around if net.crop else 0
        self.width = net.screen + around + net.message + net.statistics + net.action

    def forward(self, obs: Obs) -> torch.Tensor:
        chars_NRC = obs["tty_chars"].int() & 127
        glyph_NRC = chars_NRC * 16 + (obs["tty_colors"].int() & 15)
        blstats = obs["blstats"]
        found = [self._screen(glyph_NRC)]
        if self.around is not None:
            found.append(F.relu(self.around(self._surroundings(glyph_NRC, blstats))))
        found.append(self.message(self.letters(chars_NRC[:, 0]).flatten(1)))
        found.append(self.statistics(features(blstats, obs["tty_cursor"])))
        found.append(self.action(obs["prev_action"].long()))
        return torch.cat(found, -1)

    def take_in(self, obs: Obs) -> None:
        """Nothing is normalised by running numbers."""

    def _screen(self, glyph_NRC: torch.Tensor) -> torch.Tensor:
        count = len(glyph_NRC)
        (rows, columns), (high, wide) = self.grid, self.patch
        # Cells of a patch are put beside each other as numbers, before they become vectors.
        cells = glyph_NRC.view(count, rows, high, columns, wide).transpose(2, 3)
        x = self.glyph(cells.reshape(count * rows * columns, high * wide)).flatten(1)
        x = F.relu(self.first(x)).view(count, rows, columns, -1).permute(0, 3, 1, 2)
        return F.relu(self.screen(self.stages(x).flatten(1)))

    def _surroundings(self, glyph_NRC: torch.Tensor, blstats: torch.Tensor) -> torch.Tensor:
        half = self.crop // 2
        padded = F.pad(glyph_NRC, (half, half, half, half)).flatten(1)
        wide = COLUMNS + 2 * half
        # The map begins in the second line of the terminal.
        column = blstats[:, 0].long().clamp(0, COLUMNS - 1)
        row = (blstats[:, 1].long() + 1).clamp(0, ROWS - 1)
        steps = torch.arange(self.crop, device=glyph_NRC.device)
        offset = (steps[:, None] * wide + steps).flatten()
        at = (row * wide + column)[:, None] + offset
        return self.glyph(padded.gather(1, at)).flatten(1)


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.one = nn.Conv2d(width, width, 3, padding=1)
        self.two = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(x + self.two(F.relu(self.one(F.relu(x)))))


def _perceptron(inputs: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())


def features(blstats: torch.Tensor, cursor: torch.Tensor) -> torch.Tensor:
    """NLE's bottom-line statistics `[N, 27]` and the cursor `[N, 2]` as float32 `[N, 57]` of size about 1:
    logarithms, shares of hit points and energy, and what is a choice or a set of bits as ones."""
    x = blstats.float()
    logs = x.sign() * x.abs().log1p() / 5.0
    shares = torch.stack([x[:, 10] / x[:, 11].clamp(min=1), x[:, 14] / x[:, 15].clamp(min=1)], -1)
    hunger = F.one_hot(blstats[:, 21].long().clamp(0, _HUNGER - 1), _HUNGER)
    capacity = F.one_hot(blstats[:, 22].long().clamp(0, _CAPACITY - 1), _CAPACITY)
    places = torch.arange(_CONDITIONS, device=blstats.device, dtype=blstats.dtype)
    conditions = (blstats[:, 25, None] >> places) & 1
    place = cursor.float() / torch.tensor([ROWS, COLUMNS], device=cursor.device)
    joined = [logs, shares.clamp(-2, 2), hunger, capacity, conditions, place]
    return torch.cat([part.float() for part in joined], -1)
