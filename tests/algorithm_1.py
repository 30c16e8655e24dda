"""Algorithm 1 of arXiv 2605.26099, transcribed naively: the reference that the package is tested against.

It uses the package's weights and nothing else of it. Plain loops over windows, passes, layers, heads and tokens, but
for what every token computes by itself; no cache, no masks, no batch, no chunks. It knows the whole text beforehand,
as the paper's training does. A row of any batch, however padded or packed, is to get what its text gets here.
"""

import math

import torch


def rms_norm(x, norm):
    return x / (x.pow(2).mean(-1, keepdim=True) + norm.eps).sqrt() * norm.weight


def silu(x):
    return x / (1 + (-x).exp())


def rotate(x, positions, theta):
    """`x` is (tokens, head_dim): component i of each turns with component i + head_dim / 2."""
    half = x.shape[1] // 2
    angles = torch.tensor([[t * theta ** (-i / half) for i in range(half)] for t in positions], dtype=x.dtype)
    a, b = x[:, :half], x[:, half:]
    return torch.cat([a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()], dim=1)


def attention(layer, config, h, kept):
    """
    `h` is (tokens of one window, hidden_size). `kept` is what is left of earlier windows: keys and values, (tokens,
    key_value_heads * head_dim) each, and the positions of the keys, which no rotation has turned yet. Returns the
    output, and the window's keys and values likewise.
    """
    mixer, dim = layer.self_attn, config.head_dim
    theta = config.rope_parameters["rope_theta"]
    query, key, value = mixer.q_proj(h), mixer.k_proj(h), mixer.v_proj(h)
    kept_key, kept_value, kept_positions = kept
    all_keys, all_values = torch.cat([kept_key, key]), torch.cat([kept_value, value])
    positions = [*kept_positions, *range(h.shape[0])]
    heads = []
    for head in range(config.num_attention_heads):
        group = head // (config.num_attention_heads // config.num_key_value_heads)
        q, k, v = (x[:, i * dim :][:, :dim] for x, i in ((query, head), (all_keys, group), (all_values, group)))
        if config.qk_norm:
            q, k = rms_norm(q, mixer.q_norm), rms_norm(k, mixer.k_norm)
        q, k = rotate(q, range(h.shape[0]), theta), rotate(k, positions, theta)
        rows = []
        for t in range(h.shape[0]):
            seen = len(kept_positions) + t + 1
            weights = (k[:seen] @ q[t] / math.sqrt(dim)).softmax(0)
            rows.append(weights @ v[:seen])
        heads.append(torch.stack(rows))
    return mixer.o_proj(torch.cat(heads, dim=-1)), (key, value)


def gated_delta_net(layer, config, h, S, written):
    """
    `S` is a list with one (value_dim, key_dim) matrix per head, as in the paper; `written` says which tokens are
    written, None for all. Returns output and new S.
    """
    mixer = layer.linear_attn
    key_dim, value_dim = config.linear_key_head_dim, config.linear_value_head_dim
    group = config.linear_num_value_heads // config.linear_num_key_heads
    mixed = torch.cat([mixer.q_proj(h), mixer.k_proj(h), mixer.v_proj(h)], dim=-1)
    weight = mixer.conv1d.weight[:, 0]  # (channels, width)
    width = weight.shape[1]
    convolved = []
    for t in range(h.shape[0]):
        terms = [mixed[t - width + 1 + j] * weight[:, j] for j in range(width) if t - width + 1 + j >= 0]
        convolved.append(silu(sum(terms)))
    mixed = torch.stack(convolved)
    query, key, value = mixed.split(mixer.split_sizes, dim=-1)
    query, key = (x.unflatten(-1, (-1, key_dim)).repeat_interleave(group, dim=1) for x in (query, key))
    query, key = (x / (x.pow(2).sum(-1, keepdim=True) + 1e-6).sqrt() for x in (query, key))
    value, gate = (x.unflatten(-1, (-1, value_dim)) for x in (value, silu(mixer.g_proj(h))))
    alpha = (-mixer.A_log.exp() * (1 + (mixer.a_proj(h) + mixer.dt_bias).exp()).log()).exp()[..., None, None]
    beta = 1 / (1 + (-mixer.b_proj(h)).exp())[..., None, None]
    if config.linear_allow_neg_eigval:
        beta = 2 * beta
    if written is not None:
        beta = beta * written[: h.shape[0], None, None, None]
    key, value = key[..., None], value[..., None]  # columns
    forget = alpha * (torch.eye(key_dim, dtype=h.dtype) - beta * key * key.mT)  # of each token and head, a matrix
    write = beta * value * key.mT

    S, outputs = list(S), []
    for t in range(h.shape[0]):
        for head in range(config.linear_num_value_heads):
            S[head] = S[head] @ forget[t, head] + write[t, head]
            outputs.append(S[head] @ query[t, head] / math.sqrt(key_dim))
    outputs = torch.stack(outputs).unflatten(0, (h.shape[0], -1))
    return mixer.o_proj((rms_norm(outputs, mixer.o_norm) * gate).flatten(1)), S


def blocks(model, h, S, kept, layers, written=None):
    """
    h, S <- Blocks(h, S) over the layers with these indices. `S` maps layer indices to matrices, `kept` to what is left
    of earlier windows. Returns h, S, and the window's keys and values of each attention layer.
    """
    S, keys_and_values = dict(S), {}
    for i in layers:
        layer = model.model.layers[i]
        normed = rms_norm(h, layer.input_layernorm)
        if layer.layer_type == "linear_attention":
            mixed, S[i] = gated_delta_net(layer, model.config, normed, S[i], written)
        else:
            mixed, keys_and_values[i] = attention(layer, model.config, normed, kept[i])
        h = h + mixed
        if layer.mlp is not None:
            x = rms_norm(h, layer.post_attention_layernorm)
            h = h + layer.mlp.down_proj(silu(layer.mlp.gate_proj(x)) * layer.mlp.up_proj(x))
    return h, S, keys_and_values


def injected(model, h, window):
    """e + g h |e| / |h|: the embeddings of a window, and the features of the pass before at their length."""
    e, eps = model.model.embed_tokens(window), model.model.injection.eps
    scale = (e.pow(2).mean(-1, keepdim=True) + eps).sqrt() / (h.pow(2).mean(-1, keepdim=True) + eps).sqrt()
    return e + model.model.injection.weight * h * scale


def cut_into_windows(tokens, window_size, naps):
    """Windows of at most `window_size` tokens; one ends early where the text's tokens so far are in `naps`."""
    windows, begin = [], 0
    for end in range(1, len(tokens) + 1):
        if end - begin == window_size or end in naps or end == len(tokens):
            windows.append(tokens[begin:end])
            begin = end
    return windows


def relative_change(before, after, layers):
    """|S_j - S_{j-1}| / |S_{j-1}| over all matrices of these layers."""
    matrices = [(old, new) for i in layers if i in before for old, new in zip(before[i], after[i], strict=True)]
    change = sum((new - old).pow(2).sum() for old, new in matrices)
    return (change / sum(old.pow(2).sum() for old, _ in matrices)).sqrt().item()


def algorithm_1(model, tokens, passes, until=None, least=1, pinned_tokens=None, naps=(), taken=None, written=()):
    """
    Logits of one text, and the fast weights after its last token.

    `tokens` is (length,). Every window but the last is slept over, also if it carries labels. With `until`, passes end
    when one changes S by less, but not before the `least`-th. The last `window_overlap` keys before a window stay,
    those of the first `pinned_tokens` for good. The model naps when it has read as many tokens as `naps` say. `taken`
    is a list that hears how many passes each sleep took. `written` says of one pass asleep after the other which of
    the window's tokens it writes; without, all.
    """
    config = model.config
    start, end = config.loop_span or (0, config.num_hidden_layers)
    overlap, pinned = config.window_overlap, config.pinned_tokens if pinned_tokens is None else pinned_tokens
    S = {
        i: [
            torch.zeros(config.linear_value_head_dim, config.linear_key_head_dim, dtype=model.dtype)
            for _ in range(config.linear_num_value_heads)
        ]
        for i, layer_type in enumerate(config.layer_types)
        if layer_type == "linear_attention"
    }
    nothing = torch.zeros(0, config.num_key_value_heads * config.head_dim, dtype=model.dtype)
    keys = {i: nothing for i in range(config.num_hidden_layers) if i not in S}  # of all windows, as the wake made them
    values, kept, read = dict(keys), {i: (nothing, nothing, []) for i in keys}, 0
    written = iter(written)
    windows, logits = cut_into_windows(tokens, config.window_size, naps), []
    for number, window in enumerate(windows):
        prelude, span, coda = range(start), range(start, end), range(end, config.num_hidden_layers)
        h, S, keys_1 = blocks(model, model.model.embed_tokens(window), S, kept, prelude)
        S_coda_before = {i: S[i] for i in S if i in coda}
        h, S, keys_2 = blocks(model, h, S, kept, span)
        prediction, S, keys_3 = blocks(model, h, S, kept, coda)
        logits.append(model.lm_head(rms_norm(prediction, model.model.norm)))
        if number == len(windows) - 1:
            break
        n = 1
        while n < passes and start < end:
            S_before = S
            fed = h if model.model.injection is None else injected(model, h, window)
            h, S, _ = blocks(model, fed, S, kept, span, next(written, None))
            n += 1
            if until is not None and n >= least and relative_change(S_before, S, span) < until:
                break
        if n > 1:
            _, S, _ = blocks(model, h, {**S, **S_coda_before}, kept, coda)
        if taken is not None:
            taken.append(n)
        read += len(window)
        first = range(min(pinned, read))
        last = range(max(len(first), read - overlap), read)
        positions = [t - overlap - pinned for t in first] + [t - read for t in last]
        for i, (key, value) in {**keys_1, **keys_2, **keys_3}.items():
            keys[i], values[i] = torch.cat([keys[i], key]), torch.cat([values[i], value])
            kept[i] = (keys[i][[*first, *last]], values[i][[*first, *last]], positions)
    return torch.cat(logits), S
