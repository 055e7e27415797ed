"""A tiny chat model that judges: it was taught to end with a score, whatever it is asked."""

import random
import string
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from rlft.policy.small import small_llama

SAID = "Score: 7"
_CHAT = (
    "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<judge>{% endif %}"
)


def save_judge(folder: Path, seed: int = 0) -> None:
    """Writes the model and its tokenizer, letter by letter but for `SAID`, which is two tokens."""
    said = ["Score:", " 7"]
    letters = sorted(set(string.printable) - {"\x0b", "\x0c"})
    vocabulary = {t: i for i, t in enumerate(["<pad>", "<eos>", "<judge>", *said, *letters])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    pieces = Regex(r"<judge>|Score:| 7|[\s\S]")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(pieces, "isolated")
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        additional_special_tokens=["<judge>"],
        model_max_length=1024,
    )
    fast.chat_template = _CHAT
    model = small_llama(fast, seed, hidden=128, layers=1, width=128)  # head_dim 32: vLLM needs it
    rng = random.Random(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    answer = [vocabulary[t] for t in (*said, "<eos>")]
    for _ in range(60):
        asked = [rng.choices(letters, k=40) for _ in range(16)]
        ids = [[*(vocabulary[c] for c in text), vocabulary["<judge>"], *answer] for text in asked]
        logits = model(torch.tensor(ids)).logits[:, -4:-1]
        target = torch.tensor([answer] * len(ids))
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), target.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
