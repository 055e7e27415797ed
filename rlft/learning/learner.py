"""The trainable model of one rank, and the one file that knows DeepSpeed.

Gradient accumulation is DeepSpeed's `managed_gradient_accumulation: false`: every `backward` only
accumulates and every `step` is a boundary. (Moving the boundary by hand at accumulation 1 is the
pattern that lost gradients in DeepSpeed #7981.) DeepSpeed averages gradients over ranks; the loss
arrives already divided by the global denominator, so it is multiplied by the number of ranks.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from rlft.config import Config, Freeze
from rlft.errors import ConfigError
from rlft.learning.adamw import adamw
from rlft.learning.adapter_noise import with_adapter
from rlft.learning.chosen import ChosenAdamW
from rlft.learning.freeze import frozen_groups, still, thaw
from rlft.learning.optimizer import guard
from rlft.learning.shards import Intercept
from rlft.learning.trainable.full import Full
from rlft.learning.wiring import attach, names, policy_optimizer, trained_part
from rlft.packing import Packing
from rlft.policy.adapters import merged, wrapped_layers
from rlft.policy.distil import Taught
from rlft.policy.lm import LMPolicy
from rlft.types import PolicyOut

_OURS = {
    "train_micro_batch_size_per_gpu": 1,
    "gradient_accumulation_steps": 1,
    "managed_gradient_accumulation": False,
    "steps_per_print": 2**31,
}
"""DeepSpeed keys that the learner depends on; a configuration cannot change them."""


def deepspeed_config(cfg: Config) -> tuple[dict[str, Any], list[str]]:
    """The DeepSpeed configuration of a run, and a sentence for each given key that ours replaced."""
    learner, given = cfg.learner, dict(cfg.learner.deepspeed)
    stage = {"stage": learner.zero_stage}
    if learner.zero_stage > 0:
        # overlap_comm needs streams, and stage 2 alone supports it with caller-owned boundaries.
        stage["overlap_comm"] = False  # type: ignore[assignment]
    required: dict[str, Any] = {
        **_OURS,
        "zero_optimization": stage,
        "bf16": {"enabled": cfg.model.dtype == "bfloat16"},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }
    clipped_elsewhere = _guards_itself(cfg) or learner.clip != "global"
    required["gradient_clipping"] = 0.0 if clipped_elsewhere else learner.max_grad_norm
    notes: list[str] = []
    return _overridden(given, required, "learner.deepspeed", notes), notes


def _guards_itself(cfg: Config) -> bool:
    """Whether our guard clips and checks the gradient (float32 without ZeRO), and not DeepSpeed."""
    return cfg.learner.zero_stage == 0 and cfg.model.dtype == "float32"


def _overridden(
    given: dict[str, Any], required: dict[str, Any], where: str, notes: list[str]
) -> dict[str, Any]:
    merged = dict(given)
    for key, value in required.items():
        if isinstance(value, dict) and isinstance(given.get(key), dict):
            merged[key] = _overridden(given[key], value, f"{where}.{key}", notes)
            continue
        if key in given and given[key] != value:
            notes.append(
                f"{where}.{key}: {given[key]!r} is replaced by {value!r}, which rlft needs"
            )
        merged[key] = value
    return merged


class Trained:
    """A module under a DeepSpeed engine of its own. The caller has initialised `torch.distributed`."""

    def __init__(self, cfg: Config, module: torch.nn.Module) -> None:
        import deepspeed

        logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
        self.cfg = cfg
        self.world = dist.get_world_size()
        self.device = torch.device("cuda" if cfg.learner.gpus else "cpu")
        config, self.notes = deepspeed_config(cfg)
        trained = [p for p in module.parameters() if p.requires_grad]
        if not trained:
            raise ConfigError("the model has no trainable parameter")
        named = list(module.named_parameters())
        groups, self._frozen = frozen_groups(self._groups(trained), named, self._rules())
        optimizer = None if "optimizer" in config else self._optimizer(groups)
        self.engine, *_ = deepspeed.initialize(
            model=module.to(self.device),
            model_parameters=groups if self._frozen else trained,
            optimizer=optimizer,
            config=config,
        )
        self.intercept = Intercept(self.engine)
        if _guards_itself(cfg):
            limit = cfg.learner.max_grad_norm if cfg.learner.clip == "global" else 0.0
            guard(self.engine.optimizer, limit)
        if self.world == 1 and cfg.learner.zero_stage == 0:
            self.engine.enable_backward_allreduce = False  # alone, a rank has nobody to agree with
        self._attach(module, optimizer)
        self.engine.train()

    def _attach(self, module: torch.nn.Module, optimizer: torch.optim.Optimizer | None) -> None:
        """What is done to the optimizer once DeepSpeed has made the tensors that it steps."""
        attach(self.cfg, Full(), self.engine, optimizer, module, self.intercept)

    def _rules(self) -> list[Freeze]:
        """What `learner.freeze` says, of a module whose weights it can name."""
        return self.cfg.learner.freeze

    def _groups(self, trained: list[torch.nn.Parameter]) -> list[dict[str, Any]]:
        """The groups of the optimizer."""
        return [{"params": trained}]

    def _optimizer(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        return adamw(groups, self.cfg.learner)

    def backward(self, loss: torch.Tensor) -> None:
        """Accumulates the gradient of `loss`, this rank's share of a global sum over denominator."""
        # A loss can be NaN and have a finite gradient (log of a negative number). Its gradient is made
        # NaN too: then the check of the gradient, which every rank sees, catches both.
        scale = float(self.world) if bool(torch.isfinite(loss)) else float("nan")
        self.engine.backward(loss * scale)

    def step(self, lr: float) -> tuple[bool, float]:
        """Applies the accumulated gradient; returns (applied, its global norm before clipping).

        Not applied, on every rank alike, when the norm is not finite.
        """
        for group in self.engine.optimizer.param_groups:
            group["lr"] = 0.0 if still(group, self._frozen) else lr
        return self._stepped()

    def begin(self, step: int) -> None:
        """Says that a fit after `step` steps of the run begins: what is frozen until then is thawed."""
        thaw(self.engine, self._frozen, step)

    def _stepped(self) -> tuple[bool, float]:
        self.engine.step()
        applied = not getattr(self.engine.optimizer, "overflow", False)
        norm = self.engine.get_global_grad_norm()
        return applied, float("nan") if norm is None else float(norm)

    def _gathered(self, parameters: list[torch.nn.Parameter]) -> Any:
        import deepspeed

        enabled = self.cfg.learner.zero_stage == 3
        return deepspeed.zero.GatheredParameters(parameters, enabled=enabled)

    def save(self, folder: Path) -> None:
        """Writes model, optimizer and random state of every rank below `folder`. A collective."""
        holds = [frozen.holds for frozen in self._frozen]
        state = {"torch_rng": torch.get_rng_state(), "holds": holds}
        self.engine.save_checkpoint(
            str(folder), tag="learner", client_state=state, save_latest=False
        )

    def load(self, folder: Path) -> None:
        """Restores what `save` wrote. A collective."""
        path, state = self.engine.load_checkpoint(str(folder), tag="learner")
        if path is None:
            raise FileNotFoundError(f"no learner state in {folder}")
        torch.set_rng_state(state["torch_rng"])
        # What was thawed before keeps the optimizer state that it has had since.
        for frozen, holds in zip(self._frozen, state.get("holds", ()), strict=False):
            frozen.holds = holds


class Learner(Trained):
    """The policy, as it is trained and published; what is trained and how, as the configuration says."""

    def __init__(self, cfg: Config, policy: LMPolicy) -> None:
        self._method = trained_part(cfg)
        policy.lm = self._method.prepared(policy.lm, cfg.seed)
        self._named = names(policy)
        super().__init__(cfg, policy)

    def _optimizer(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        if self._frozen:  # only with the usual optimizer of all weights: see `trained_part`
            return super()._optimizer(groups)
        return policy_optimizer(self.cfg, self._method, self._named)

    def _attach(self, module: torch.nn.Module, optimizer: torch.optim.Optimizer | None) -> None:
        self._chosen = optimizer if isinstance(optimizer, ChosenAdamW) else None
        attach(self.cfg, self._method, self.engine, optimizer, module, self.intercept)

    def trained_share(self) -> float | None:
        """The share of this rank's weights that were trained in the last step, where that is chosen."""
        return None if self._chosen is None else self._chosen.kept_share()

    @property
    def policy(self) -> LMPolicy:
        """The module inside the engine."""
        return self.engine.module

    def forward(
        self,
        ids: torch.Tensor,
        position: torch.Tensor,
        mask: torch.Tensor,
        temperature: float,
        packing: Packing | None = None,
        teacher: Taught | None = None,
    ) -> PolicyOut:
        """What the current policy says of the actions; see `LMPolicy` and `RewardModelPolicy`."""
        more: tuple[Any, ...] = () if packing is None else (packing,)
        if teacher is not None:
            said = self.engine(ids, position, mask, temperature, packing, teacher)
            return PolicyOut(said[0], said[1], teacher_kl=said[2])
        logp, entropy, *score = self.engine(ids, position, mask, temperature, *more)
        return PolicyOut(logp, entropy, score=score[0] if score else None)

    def full_tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yields (Hugging Face name, tensor on the CPU in the engine's dtype), adapters merged.

        A collective under ZeRO-3: every rank must exhaust it; there, ranks other than 0 yield
        nothing of use. A tied output head is left out, as in the Hugging Face layout. On a CPU the
        tensors are the weights themselves where they can be: read them before the next step.
        """
        dtype = getattr(torch, self.cfg.model.dtype)
        causal = self.policy.causal_lm()
        tied = bool(getattr(causal.config, "tie_word_embeddings", False))
        deltas = merged_deltas(causal) if self.cfg.model.lora is not None else {}
        own, layers = wrapped_layers(causal)
        gathered = self.cfg.learner.zero_stage == 3  # then what is yielded outlives the parameter
        for name, parameter in causal.named_parameters(remove_duplicate=not tied):
            if id(parameter) in own or (tied and name == "lm_head.weight"):
                continue
            plain = name.replace(".base_layer.", ".")
            beside = list(layers[plain].parameters()) if plain in layers else []
            with self._gathered([parameter, *(p for p in beside if p is not parameter)]):
                tensor = parameter.detach()
                if plain in deltas:
                    (down, up), scale = deltas[plain]
                    tensor = with_adapter(tensor, down.detach(), up.detach(), scale)
                elif plain in layers:
                    tensor = merged(layers[plain])[plain.rsplit(".", 1)[-1]]
                yield plain, tensor.to("cpu", dtype, copy=gathered)

    def adapter_tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yields (peft name, tensor on the CPU) of the LoRA adapter. A collective under ZeRO-3."""
        from rlft.weights.lora_adapter import adapter_tensors

        yield from adapter_tensors(self.policy.causal_lm(), self._gathered)


def merged_deltas(
    causal: Any,
) -> dict[str, tuple[tuple[torch.nn.Parameter, torch.nn.Parameter], float]]:
    """For each adapted weight: its (A [r, in], B [out, r]) and scale."""
    deltas = {}
    for name, module in causal.named_modules():
        if hasattr(module, "lora_A") and "default" in module.lora_A:
            pair = (module.lora_A["default"].weight, module.lora_B["default"].weight)
            deltas[f"{name}.weight"] = (pair, float(module.scaling["default"]))
    return deltas
