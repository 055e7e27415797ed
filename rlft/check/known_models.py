"""Shapes of models that are often named, so that `rlft check` can say what they need without the hub.

As in their `config.json`; whatever is not here is read from the hub or a folder.
"""

from __future__ import annotations

from typing import Any


def _qwen2(hidden: int, layers: int, heads: int, kv: int, inner: int, vocabulary: int = 151_936):
    return {
        "model_type": "qwen2",
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "intermediate_size": inner,
        "vocab_size": vocabulary,
        "tie_word_embeddings": hidden < 3000,
    }


_SIZES = {
    "0.5B": _qwen2(896, 24, 14, 2, 4864),
    "1.5B": _qwen2(1536, 28, 12, 2, 8960),
    "3B": _qwen2(2048, 36, 16, 2, 11008),
    "7B": _qwen2(3584, 28, 28, 4, 18944, 152_064),
}

KNOWN: dict[str, dict[str, Any]] = {
    f"Qwen/Qwen2.5{kind}-{size}{suffix}": shape
    for size, shape in _SIZES.items()
    for kind in ("", "-Math")
    for suffix in ("", "-Instruct")
    if not (kind and size in ("0.5B", "3B"))
}
"""`name on the hub -> config`. Qwen2.5-Math has only 1.5B and 7B of these."""
