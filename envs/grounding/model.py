"""A small language model for grounding on text, made in code: no downloads."""

from __future__ import annotations

from typing import TYPE_CHECKING

from envs.grounding.annotations import load
from rlft.policy.small import small_llama

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

PAD, BOS, EOS, UNK = "<pad>", "<bos>", "<eos>", "<unk>"
TAGS = ("<answer>", "</answer>", "<think>", "</think>")


def build_tokenizer(
    path: str, source: str = "activitynet", vocabulary: int = 1024
) -> PreTrainedTokenizerFast:
    """Byte-level BPE learnt from the file's queries; each digit and each tag is a token of its own."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE(unk_token=UNK))
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), bytes_]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[PAD, BOS, EOS, UNK],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator((m.query for m in load(source, path).moments), trainer)
    bpe.add_tokens([AddedToken(tag, normalized=False) for tag in TAGS])
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNK,
        clean_up_tokenization_spaces=False,
        model_max_length=256,
    )


def build_model(
    seed: int,
    path: str = "",
    source: str = "activitynet",
    hidden: int = 128,
    layers: int = 3,
    vocabulary: int = 1024,
) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """A Llama of about a million random float32 weights, a function of `seed` and the file alone.

    path: the annotations whose queries the tokenizer is learnt from. The global random state is left
    as it was.
    """
    tokenizer = build_tokenizer(path, source, vocabulary)
    return small_llama(tokenizer, seed, hidden=hidden, layers=layers, width=4 * hidden), tokenizer
