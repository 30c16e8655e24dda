"""Algorithm 1 of arXiv 2605.26099, transcribed naively: the reference that the package is tested against.

It uses the package's weights and nothing else of it. Plain loops over windows, passes, layers, rows, heads and tokens;
no cache, no masks, no chunks. It knows the whole text beforehand, as the paper's training does.
"""

import math

import torch


def rms_norm(x, norm):
    return x / (x.pow(2).mean(-1, keepdim=True) + norm.eps).sqrt() * norm.weight


def silu(x):
    return x / (1 + (-x).exp())


def rotate(x, position, theta):
    """`x` is (head_dim,): component i turns with component i + head_dim / 2."""
    half = x.shape[0] // 2
    angles = torch.tensor([position * theta ** (-2 * i / x.shape[0]) for i in range(half)], dtype=x.dtype)
    a, b = x[:half], x[half:]
    return torch.cat([a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()])


def attention(layer, config, h):
    """`h` is (tokens of one window, hidden_size)."""
    mixer, dim = layer.self_attn, config.head_dim
    theta = config.rope_parameters["rope_theta"]
    query, key, value = mixer.q_proj(h), mixer.k_proj(h), mixer.v_proj(h)
    heads = []
    for head in range(config.num_attention_heads):
        group = head // (config.num_attention_heads // config.num_key_value_heads)
        q, k, v = query[:, head * dim :][:, :dim], key[:, group * dim :][:, :dim], value[:, group * dim :][:, :dim]
        if config.qk_norm:
            q, k = rms_norm(q, mixer.q_norm), rms_norm(k, mixer.k_norm)
        q = torch.stack([rotate(x, t, theta) for t, x in enumerate(q)])
        k = torch.stack([rotate(x, t, theta) for t, x in enumerate(k)])
        rows = []
        for t in range(h.shape[0]):
            weights = (k[: t + 1] @ q[t] / math.sqrt(dim)).softmax(0)
            rows.append(weights @ v[: t + 1])
        heads.append(torch.stack(rows))
    return mixer.o_proj(torch.cat(heads, dim=-1))


def gated_delta_net(layer, config, h, S):
    """`S` is a list with one (value_dim, key_dim) matrix per head, as in the paper. Returns output and new S."""
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
    gate = silu(mixer.g_proj(h))
    dt, b = mixer.a_proj(h), mixer.b_proj(h)

    S, tokens = list(S), []
    for t in range(h.shape[0]):
        outputs = []
        for head in range(config.linear_num_value_heads):
            q = query[t, (head // group) * key_dim :][:key_dim]
            k = key[t, (head // group) * key_dim :][:key_dim]
            v = value[t, head * value_dim :][:value_dim]
            q, k = q / (q @ q + 1e-6).sqrt(), k / (k @ k + 1e-6).sqrt()
            alpha = (-mixer.A_log[head].exp() * (1 + (dt[t, head] + mixer.dt_bias[head]).exp()).log()).exp()
            beta = 1 / (1 + (-b[t, head]).exp())
            if config.linear_allow_neg_eigval:
                beta = 2 * beta
            identity = torch.eye(key_dim, dtype=h.dtype)
            S[head] = alpha * S[head] @ (identity - beta * torch.outer(k, k)) + beta * torch.outer(v, k)
            o = S[head] @ q / math.sqrt(key_dim)
            outputs.append(rms_norm(o, mixer.o_norm) * gate[t, head * value_dim :][:value_dim])
        tokens.append(torch.cat(outputs))
    return mixer.o_proj(torch.stack(tokens)), S


def blocks(model, h, S, layers):
    """h, S <- Blocks(h, S) over the layers with these indices. `S` maps layer indices to matrices."""
    S = dict(S)
    for i in layers:
        layer = model.model.layers[i]
        normed = rms_norm(h, layer.input_layernorm)
        if layer.layer_type == "linear_attention":
            mixed, S[i] = gated_delta_net(layer, model.config, normed, S[i])
        else:
            mixed = attention(layer, model.config, normed)
        h = h + mixed
        if layer.mlp is not None:
            x = rms_norm(h, layer.post_attention_layernorm)
            h = h + layer.mlp.down_proj(silu(layer.mlp.gate_proj(x)) * layer.mlp.up_proj(x))
    return h, S


def algorithm_1(model, tokens, passes):
    """
    Logits of one text, and the fast weights after its last token.

    `tokens` is (length,). Every window but the last is slept over, also if it carries labels.
    """
    config = model.config
    start, end = config.loop_span or (0, config.num_hidden_layers)
    S = {
        i: [
            torch.zeros(config.linear_value_head_dim, config.linear_key_head_dim, dtype=model.dtype)
            for _ in range(config.linear_num_value_heads)
        ]
        for i, layer_type in enumerate(config.layer_types)
        if layer_type == "linear_attention"
    }
    windows, logits = tokens.split(config.window_size), []
    for number, window in enumerate(windows):
        prelude, span, coda = range(start), range(start, end), range(end, config.num_hidden_layers)
        h, S = blocks(model, model.model.embed_tokens(window), S, prelude)
        S_coda_before = {i: S[i] for i in S if i in coda}
        h, S = blocks(model, h, S, span)
        prediction, S = blocks(model, h, S, coda)
        logits.append(model.lm_head(rms_norm(prediction, model.model.norm)))
        if passes > 1 and number < len(windows) - 1:
            for _ in range(passes - 1):
                h, S = blocks(model, h, S, span)
            _, S = blocks(model, h, {**S, **S_coda_before}, coda)
    return torch.cat(logits), S
