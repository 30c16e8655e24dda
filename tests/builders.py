"""What many tests are made of: small models, tokens and tokenizers, the same ones in every process."""

from collections.abc import Iterable

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from modeling_sleep import SleepConfig, SleepForCausalLM


# Two layers of each kind. Sizes differ, so that no axis can be taken for another.
UNEVEN = dict(
    vocab_size=23,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=4,
    layer_types=["sleep_attention", "linear_attention"] * 2,
    num_attention_heads=4,
    num_key_value_heads=2,
    linear_num_key_heads=2,
    linear_num_value_heads=4,
    linear_key_head_dim=6,
    linear_value_head_dim=5,
    window_size=5,
)


def tiny_model(model_class=SleepForCausalLM, dtype=torch.float32, **overrides):
    """The preset "tiny", drawn from seed 0, for evaluation."""
    torch.manual_seed(0)
    return model_class(SleepConfig.from_preset("tiny", **overrides)).to(dtype).eval()


def uneven_model(model_class=SleepForCausalLM, dtype=torch.float64, **overrides):
    """Of the sizes in [`UNEVEN`], drawn from seed 0."""
    torch.manual_seed(0)
    return model_class(SleepConfig(**{**UNEVEN, **overrides})).to(dtype)


def random_ids(batch, length, seed=1, low=1, high=64):
    """(batch, length) of tokens from `low` to `high` - 1, whatever was drawn before."""
    return torch.randint(low, high, (batch, length), generator=torch.Generator().manual_seed(seed))


def word_tokenizer(words: Iterable[str], **options) -> PreTrainedTokenizerFast:
    """
    A tokenizer of words, which stand between blanks.

    Parameters
    ----------
    words : iterable of str
        In the order of their ids. What is not among them is read as `unk_token`, or else as the first.
    **options
        For `PreTrainedTokenizerFast`: special tokens, `chat_template`, ...
    """
    words = list(words)
    core = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=options.get("unk_token", words[0]))
    )
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=core, **options)
