"""What many tests look at: gradients, what a cache remembers, and tokens that are padded."""

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A token for each byte, without any training."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(["<pad>", "<end>", *alphabet])}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<end>")


def gradients(model) -> dict[str, torch.Tensor]:
    """Copies, by the names of the parameters that have one."""
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def gradients_of(loss, model) -> dict[str, torch.Tensor]:
    """Copies, by the names of all parameters: each has one, but for an injection where no pass was made asleep."""
    model.zero_grad()
    loss.backward()
    for name, parameter in model.named_parameters():
        if parameter.grad is None and name == "model.injection.weight":
            parameter.grad = torch.zeros_like(parameter)
    return {name: p.grad.clone() for name, p in model.named_parameters()}


def largest_difference(first: dict, second: dict) -> float:
    """Between two dictionaries of tensors."""
    assert first.keys() == second.keys()
    return max((first[name] - second[name]).abs().max().item() for name in first)


def assert_same_gradients(ours: dict, theirs: dict) -> None:
    """Each as close to its other as float64 allows, for its size."""
    for name, gradient in ours.items():
        assert (gradient - theirs[name]).norm() <= 1e-9 + 1e-8 * theirs[name].norm(), name


def assert_close(ours, expected, atol=1e-9) -> None:
    """In every number, however large it is."""
    torch.testing.assert_close(ours, expected, atol=atol, rtol=0)


def fast_weights(cache) -> list[torch.Tensor | None]:
    """S of every memory; None before its first token."""
    return [layer.recurrent_states[0] for layer in cache.layers if hasattr(layer, "recurrent_states")]


def read(model, ids, cache=None, **kwargs):
    """Logits and the cache after `ids`, without gradients."""
    with torch.no_grad():
        output = model(ids, past_key_values=cache, use_cache=True, **kwargs)
    return output.logits, output.past_key_values


def tensors_of(cache) -> dict[tuple[int, str], torch.Tensor]:
    """All tensors of a cache, by the number of their layer and a name that tells what they are."""
    found = {}
    for i, layer in enumerate(cache.layers):
        for prefix, state in (("", layer.state), ("start of ", layer.window_start_state)):
            if state is not None:
                found |= {(i, prefix + name): getattr(state, name) for name in state._fields}
        if layer.common is not None:
            names = ("kept_hidden_states", "kept_inputs_embeds", "last_hidden_state")
            found |= {(i, name): getattr(layer.common, name) for name in names}
    return {key: tensor for key, tensor in found.items() if tensor is not None}


def nbytes(cache) -> int:
    return sum(tensor.nbytes for tensor in tensors_of(cache).values())


def tensors_of_row(cache, row: int) -> dict[tuple[int, str], torch.Tensor]:
    """Those of one row, without the columns of its window's buffers that hold none of its tokens."""
    stored = next(layer.common.stored for layer in cache.layers if layer.common is not None)
    stored = stored[row] if isinstance(stored, tuple) else stored
    length_first = {"kept_hidden_states", "kept_inputs_embeds"}
    found = {}
    for (i, name), tensor in tensors_of(cache).items():
        if name in ("keys", "values"):
            found[i, name] = tensor[row, :, :stored]
        else:
            found[i, name] = tensor[row, :stored] if name in length_first else tensor[row]
    return found


def assert_same_memory(ours, theirs, atol=1e-9) -> None:
    """Of two results of `tensors_of` or `tensors_of_row`."""
    assert ours.keys() == theirs.keys()
    for key, tensor in theirs.items():
        torch.testing.assert_close(ours[key], tensor, atol=atol, rtol=0, msg=lambda text, key=key: f"{key}: {text}")
