"""Whether `learner.trainable`, `learner.optimizer`, `learner.clip` and the algorithm go together."""

from __future__ import annotations

from rlft import registry
from rlft.algo import Algo
from rlft.config import Config
from rlft.learning.wiring import refuse_elsewhere, trained_part


def check_trained_part(cfg: Config, algo: Algo) -> None:
    """Raises ConfigError, DataError or PluginError."""
    if algo.acts or algo.by_noise:
        refuse_elsewhere(cfg, f"algo {type(algo).__name__}")
        return
    trained_part(cfg).check()
    registry.build("optimizer", cfg.learner.optimizer)
