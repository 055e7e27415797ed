"""Small models made on the spot, so that environments and tests need no download."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast


def small_llama(
    tokenizer: PreTrainedTokenizerFast, seed: int, *, hidden: int, layers: int, width: int
) -> LlamaForCausalLM:
    """A Llama of random float32 weights, a function of `seed` alone, over the tokenizer's vocabulary.

    hidden: size of a token's vector; width: of the feed-forward layers; the context is the tokenizer's
    `model_max_length`. The global random state is left as it was.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=tokenizer.model_max_length,
        tie_word_embeddings=False,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    return model.float()
