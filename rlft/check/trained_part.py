"""Whether `learner.trainable`, `learner.optimizer`, `learner.clip` and the algorithm go together."""

from __future__ import annotations

from rlft import registry
from rlft.algo import Algo
from rlft.config import Config
from rlft.learning.wiring import name_of, refuse_elsewhere, trained_part


def check_trained_part(cfg: Config, algo: Algo) -> None:
    """Raises ConfigError, DataError or PluginError."""
    if algo.acts or algo.by_noise:
        refuse_elsewhere(cfg, f"algo {type(algo).__name__}")
        return
    method = trained_part(cfg)
    method.check()
    registry.build("optimizer", cfg.learner.optimizer)
    if name_of(cfg.learner.trainable) == "full":
        return  # transformers is imported for nothing else here
    if "score" in algo.needs:
        return  # a reward model has another head, which is made when it is loaded
    from rlft.check.model_shape import structure

    model = structure(cfg)
    if not isinstance(model, str):  # else what loads the model says it
        method.fits(model)
