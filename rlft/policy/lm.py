"""A causal language model as a policy: how likely were these tokens, and how uncertain was it.

Rows are padded on the right and the model is causal, so no real token ever attends to padding: no
attention mask is passed, and kernels that are causal by themselves can be used.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from rlft.errors import ConfigError
from rlft.packing import Packing
from rlft.policy.adapters import linear_names
from rlft.policy.distil import Taught
from rlft.policy.head import LogProbHead

if TYPE_CHECKING:
    from rlft.config import Lora


class LMPolicy(nn.Module):
    """`forward(ids [B, L], position [B, T], mask [B, T])` returns (logp, entropy), float32 `[B, T]`,
    and a third, the KL from `teacher`, if one is given.

    position: index into L of each decision's token; its distribution is read at the token before.
    packing: ids are `[S, L]`, and rows lie where it says.
    """

    def __init__(self, lm: nn.Module) -> None:
        super().__init__()
        self.lm = lm

    def forward(
        self,
        ids_BL: torch.Tensor,
        position_BT: torch.Tensor,
        mask_BT: torch.Tensor,
        temperature: float = 1.0,
        packing: Packing | None = None,
        teacher: Taught | None = None,
    ) -> tuple[torch.Tensor, ...]:
        hidden_NH, actions_N, row, column = self.read(ids_BL, position_BT, mask_BT, packing)
        more = () if teacher is None else (teacher,)
        said = self.causal_lm().lm_head(hidden_NH, actions_N, temperature, *more)
        blank = torch.zeros(mask_BT.shape, dtype=torch.float32, device=ids_BL.device)
        # A plain tuple: ZeRO-3 walks outputs to hook their gradients, and knows no dataclass.
        return tuple(blank.index_put((row, column), x) for x in said)

    def read(
        self,
        ids_BL: torch.Tensor,
        position_BT: torch.Tensor,
        mask_BT: torch.Tensor,
        packing: Packing | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Of each decision: the hidden state `[N, H]` that its token is drawn from, the token `[N]`, and
        its row and column in the mask."""
        causal = self.causal_lm()
        choose_attention(causal, ids_BL)
        keys: dict[str, Any] = {"input_ids": ids_BL, "use_cache": False}
        if packing is not None:
            refuse_mixing(causal.config)
            # Where places begin anew transformers keeps attention apart (find_packed_sequence_indices).
            keys["position_ids"] = packing.within_SL
        hidden_BLH = causal.get_decoder()(**keys).last_hidden_state
        row, column = mask_BT.nonzero(as_tuple=True)
        if row.numel() == 0:
            # A padding micro-batch still runs every layer: under ZeRO-3 each is a collective.
            row = column = torch.zeros(1, dtype=torch.int64, device=ids_BL.device)
        at = position_BT[row, column]
        sequence = row if packing is None else packing.sequence_B[row]
        return hidden_BLH[sequence, (at - 1).clamp_min(0)], ids_BL[sequence, at], row, column

    @contextmanager
    def without_adapter(self) -> Iterator[None]:
        """The base model, for LoRA: the reference policy costs no memory."""
        with self.lm.disable_adapter():  # type: ignore[operator]
            yield

    def causal_lm(self) -> Any:
        """The Hugging Face model itself, with its adapters in place."""
        lm: Any = self.lm
        return lm.get_base_model() if hasattr(lm, "get_base_model") else lm

    def describe(self, folder: Path) -> None:
        """Adds to a saved model what differs from the folder that it started from: nothing here."""


_APART = {"full_attention", "sliding_attention", "chunked_attention"}
"""Layers whose mask keeps packed rows apart. State that runs along a sequence would leak."""


def refuse_mixing(config: Any) -> None:
    """Raises ConfigError: a model whose layers carry state from one packed row into the next."""
    kinds = set(getattr(config, "layer_types", None) or ()) - _APART
    recurrent = [n for n in ("mamba", "rwkv", "jamba", "zamba", "bamba") if n in config.model_type]
    if kinds or recurrent:
        raise ConfigError(
            f"model {config.model_type}: its layers ({', '.join(sorted(kinds) or recurrent)}) carry state "
            f"along a sequence, so rows behind each other would mix; set algo.packing=false"
        )


_SHORT = 512
"""Up to this length plain attention (two matrix products and a softmax) beats the fused kernel on a CPU,
by 30% of a whole forward and backward at 75 tokens; beyond it the scores take too much memory."""


def choose_attention(causal: Any, ids_BL: torch.Tensor) -> None:
    short = ids_BL.device.type == "cpu" and ids_BL.shape[1] <= _SHORT
    wanted = "eager" if short else "sdpa"
    if causal.config._attn_implementation != wanted:
        causal.set_attn_implementation(wanted)


def load_lm(
    path: str | Path,
    dtype: str,
    *,
    lora: Lora | None = None,
    gradient_checkpointing: bool = False,
    seed: int = 0,
) -> LMPolicy:
    """Loads a Hugging Face causal model as a policy; with `lora`, only adapters are trainable.

    Raises ConfigError for models whose head is more than one linear map.
    """
    from transformers import AutoModelForCausalLM

    folder = str(Path(path).expanduser())
    lm: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
    _refuse_unusual_head(lm)
    lm.lm_head = LogProbHead(lm.lm_head.weight)
    if gradient_checkpointing:
        lm.gradient_checkpointing_enable({"use_reentrant": False})
        lm.enable_input_require_grads()
    if lora is not None:
        lm = adapted(lm, lora, seed, "CAUSAL_LM").to(getattr(torch, dtype))
    return LMPolicy(lm)


def adapted(lm: Any, lora: Lora, seed: int, task: str | None) -> Any:
    """`lm` with trainable adapters, everything else frozen; the same for the same seed."""
    from peft import LoraConfig, get_peft_model

    targets = lora.target_modules
    if targets == "all-linear":
        # peft's own "all-linear" looks for the output layer by type; ours is a LogProbHead.
        targets = linear_names(lm)
    with torch.random.fork_rng():
        torch.manual_seed(seed)  # adapters start from a random A: the same on every rank
        return get_peft_model(
            lm,
            LoraConfig(
                r=lora.rank,
                lora_alpha=lora.alpha,  # type: ignore[arg-type]  # peft takes floats
                lora_dropout=lora.dropout,
                target_modules=targets,
                task_type=task,
            ),
        )


def _refuse_unusual_head(lm: Any) -> None:
    for key in ("final_logit_softcapping", "logit_scale", "logits_scaling"):
        value = getattr(lm.config, key, None)
        if value not in (None, 1, 1.0):
            raise ConfigError(
                f"model {lm.config.model_type}: `{key}` = {value} changes its logits after the "
                f"output head, which rlft does not support yet; choose another model."
            )
    if not isinstance(getattr(lm, "lm_head", None), nn.Linear) or lm.lm_head.bias is not None:
        raise ConfigError(
            f"model {lm.config.model_type}: expected a linear `lm_head` without a bias; "
            f"choose another model."
        )
