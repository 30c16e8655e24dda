"""The recall memory, transcribed naively: one row, one token after another, no buffers, no masks, no matrix products
over tokens. It uses the weights of a [`RecallMemoryLayer`] and nothing else of it."""

import torch


def rms_norm(x, norm):
    return x / (x.pow(2).mean(-1, keepdim=True) + norm.eps).sqrt() * norm.weight


def unit(x):
    return x / (x @ x + 1e-6).sqrt()


def sigmoid(x):
    return 1 / (1 + (-x).exp())


def context(layer, x, t):
    """c_t of a window whose features, behind those kept from before it, are the list `x`."""
    mean = sum((x[s] for s in range(max(0, t - layer.span), t)), torch.zeros_like(x[t])) / layer.span
    parts = [x[t], mean]
    for n, slope in enumerate(layer.log_slope.exp()):
        rows = slice(n * layer.pool_q_proj.out_features // layer.poolings, None)
        size = layer.pool_q_proj.out_features // layer.poolings
        Q, K = layer.pool_q_proj.weight[rows][:size], layer.pool_k_proj.weight[rows][:size]
        weights = torch.stack([(Q @ x[t]) @ (K @ x[s]) - slope * (t - s) for s in range(t + 1)]).softmax(0)
        parts.append(sum(w * x[s] for s, w in enumerate(weights)))
    return torch.cat(parts)


def hindsight(layer, x, t):
    """f_t of a window whose features are the list `x`; empty if keys know nothing of what came after."""
    parts = [x[t][:0]]
    for n in range(layer.hindsight):
        size = layer.hindsight_q_proj.out_features // layer.hindsight
        rows = slice(n * size, (n + 1) * size)
        Q, K = layer.hindsight_q_proj.weight[rows], layer.hindsight_k_proj.weight[rows]
        slope, later = layer.log_hindsight_slope[n].exp(), range(t, len(x))
        weights = torch.stack([(Q @ x[t]) @ (K @ x[s]) - slope * (s - t) for s in later]).softmax(0)
        parts.append(sum(w * x[s] for w, s in zip(weights, later)))
    return torch.cat(parts)


def projected(projection, u):
    low_rank = hasattr(projection, "down")
    weight = projection.up.weight @ projection.down.weight if low_rank else projection.weight
    return weight @ u + projection.bias


def direction(layer, u):
    if layer.products:
        half = len(u) // 2
        u = torch.cat([u[:half], u[:half] * u[half:]])
    return unit(u)


def features(layer, hidden_states):
    """x of hidden states before the layer, or with `recall_key_layer` before that one."""
    norm = layer.input_layernorm if layer.config.recall_key_layer is None else layer.key_layernorm
    return [rms_norm(h, norm) for h in hidden_states]


def read(layer, hidden_states, S, kept=(), key_hidden_states=None):
    """
    Hidden states behind the layer, (tokens of one window, hidden_size), S as it was when the window began.
    `key_hidden_states` are those before the layer `recall_key_layer`, None where it is this one; `kept` are these of
    the `window_overlap` tokens that stand before the window.
    """
    x = features(layer, (*kept, *(hidden_states if key_hidden_states is None else key_hidden_states)))
    outputs = []
    for t, h in enumerate(hidden_states, len(kept)):
        q = direction(layer, projected(layer.q_proj, context(layer, x, t)))
        gate = 2 * sigmoid(layer.g_proj.weight[0] @ rms_norm(h, layer.input_layernorm) + layer.g_proj.bias)
        outputs.append(h + layer.o_proj.weight @ (gate * (S.T @ q)))
    return torch.stack(outputs)


def write(layer, hidden_states, embeddings, S, decays=True, kept=(), written=None):
    """
    S, (key_dim, value_dim), after the tokens of one window; those kept before it have been written. Hidden states are
    those that keys are made of. `written` says which tokens are, None for all.
    """
    x = features(layer, (*kept, *hidden_states))
    alpha = (-layer.A_log.exp()).exp() if decays else 1.0
    for t in range(len(kept), len(x)):
        S = alpha * S
        if t == 0 or (written is not None and not written[t - len(kept)]):
            continue
        f = hindsight(layer, x[len(kept) :], t - len(kept))
        known = torch.cat([context(layer, x, t - 1), f])
        k = direction(layer, projected(layer.k_proj, known))
        v = layer.v_proj.weight @ embeddings[t - len(kept)]
        gate = sigmoid(layer.b_proj.weight[0] @ torch.cat([x[t], x[t - 1]]) + layer.b_proj.bias)
        if gate <= layer.threshold:
            continue
        beta = (gate - layer.threshold) / (1 - layer.threshold)
        S = S + beta * torch.outer(k, v - S.T @ k)
    return S
