"""A memory for a pretrained model: it recalls what came next where the same was known before.

Asked for a fact, a language model looks for the place where the same words stood, and copies what came after them.
This layer does that with fast weights. What the model knew at token t - 1 is the key of token t, the token itself the
value:

    y                           normalised hidden states of the window's tokens
    x       `features`          the same, or with `recall_key_layer` normalised hidden states before that earlier layer
    c_t     `context`           x_t; the mean of x over the `recall_span` tokens before t; `recall_poolings` learned
                                means of x over the window up to t, sum_s w_ts x_s with
                                w_ts = softmax_s(Q x_t . K x_s - slope (t - s))
    f_t     `after`             `recall_hindsight` learned means of x over the window from t on, weighted like those
                                before it
    q_t     `query`             phi(A c_t + a)
    k_t     `key`               phi(B [c_{t-1}, f_t] + b); a window's first token has none, and is not written, unless
                                the last one before it was kept (`window_overlap`)
    A, B    `q_proj`, `k_proj`  matrices, with `recall_key_rank` of this rank
    phi     `features_of`       with `recall_products`, [u, u'] -> [u, u u']: the second half times the first
    v_t     `value`             P e_t, where e_t is the embedding of the token
    beta_t  `beta`              max(0, (s_t - tau) / (1 - tau)), s_t = sigmoid(w . x_t + w' . x_{t-1} + bias): whether
                                the token is worth writing; tau is `recall_threshold`
    alpha   `log_decay`         exp(-exp(A_log)): how much of S a token leaves
    S       `recurrent_state`   fast weights, one matrix (key_dim, value_dim) for each row

    awake   h_t <- h_t + O (2 sigmoid(g . y_t + bias) S_0^T q_t)      S_0: as it was when the window began
    asleep  S <- alpha (I - beta_t k_t k_t^T) S + beta_t k_t v_t^T    for every token of the window, N times

The write is the gated delta rule of arXiv 2605.26099, section 2, with q and k L2-normalised. All else is our choice:

- S is read as it stood when the window began, and written in the sleep. Attention sees the window anyway, so that
  nothing is lost; the first window is the original model, bit for bit, trained or not; a token awake only reads;
- there is no norm behind S, as it would make noise as loud as a find. Where nothing is found, nothing is added;
- in hindsight more is known: "The new chess teacher is Ada" names what will be asked for, the chess, before that by
  which it will be asked for. Asleep, the whole window is there, so that keys look ahead as well as back;
- a product of what two maps see is large where both see what they look for, and a sum where one does: products keep
  apart facts that share their person, or their kind;
- an earlier layer still tells apart names and things that later ones have merged into what they predict, so that keys
  may be made there; what is recalled is added late, where little is left to be run through in teaching;
- values come from embeddings, as the word that is sought cannot be read out of hidden states of unseen words;
- below the threshold a token is not written at all: a sigmoid is never 0, and what is written a little of each of
  thousands of tokens drowns what was told before them;
- a window decays S once, however often it is written;
- in a `loop_span` that is replayed, pass j reads S_{j-1}: what pass j - 1 has kept is written before pass j begins,
  and what pass N has kept when the window is forgotten. So N passes are N writes. Without a replay, `window.passes`
  writes of the same keys and values are made at once.

A window's buffers hold x, K x and v of its tokens; keys and betas are computed in the sleep for all of them at once.
With `window_overlap`, x and K x of the last tokens before the window stay as well: c_t looks back at them as at tokens
of the window, so that what the window's end cuts in two is found and asked for as if it were whole.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init

from .configuration_sleep import SleepConfig
from .gated_delta_rule import _no_autocast, gated_delta_rule, l2_normalise
from .low_rank_linear import LowRankLinear
from .window_sleep import Window, select


# exp(-exp(-11)) for each token: S has half-lives of 41,500 tokens.
INITIAL_A_LOG = -11.0
# Slopes of the learned poolings at first, in turn: they reach back 20 tokens, 5, 10, 2.
INITIAL_SLOPES = (0.05, 0.2, 0.1, 0.4)


class RecallState(NamedTuple):
    """
    What a [`RecallMemoryLayer`] carries. None stands for nothing yet.

    Attributes
    ----------
    recurrent_state : torch.Tensor | None
        S when the window began, (batch, 1, key_dim, value_dim), in float32 or better.
    features : torch.Tensor | None
        x of the window's tokens, (batch, columns, hidden_size).
    pool_keys : torch.Tensor | None
        K x, (batch, columns, poolings * pooling_dim).
    values : torch.Tensor | None
        v, (batch, columns, value_dim).
    kept_features, kept_pool_keys : torch.Tensor | None
        x and K x of the `window_overlap` tokens before the window, the last one last.
    kept : torch.Tensor | None
        (batch, window_overlap) of bool: which of them are any.
    """

    recurrent_state: torch.Tensor | None = None
    features: torch.Tensor | None = None
    pool_keys: torch.Tensor | None = None
    values: torch.Tensor | None = None
    kept_features: torch.Tensor | None = None
    kept_pool_keys: torch.Tensor | None = None
    kept: torch.Tensor | None = None


class RecallMemoryLayer(nn.Module):
    """
    A decoder layer of norm, memory and residual, which is inserted between those of a pretrained model.

    Parameters
    ----------
    config : SleepConfig
    layer_idx : int
        Place in the stack.
    """

    layer_type = "recall_memory"
    is_memory = True
    reads_inputs_embeds = True
    side_by_side = False  # a window reads what the one before it has written

    def __init__(self, config: SleepConfig, layer_idx: int):
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.span, self.poolings = config.recall_span, config.recall_poolings
        self.hindsight, self.products = config.recall_hindsight, config.recall_products
        self.threshold = config.recall_threshold
        hidden_size, pooling_dim = config.hidden_size, self.poolings * config.recall_pooling_dim
        context_dim, after_dim = (2 + self.poolings) * hidden_size, self.hindsight * hidden_size
        self.input_layernorm = nn.RMSNorm(hidden_size, eps=config.rms_norm_eps)
        self.key_layernorm = None
        if config.recall_key_layer is not None:
            self.key_layernorm = nn.RMSNorm(hidden_size, eps=config.rms_norm_eps)
        self.pool_q_proj = nn.Linear(hidden_size, pooling_dim, bias=False)
        self.pool_k_proj = nn.Linear(hidden_size, pooling_dim, bias=False)
        self.log_slope = nn.Parameter(torch.empty(self.poolings))
        if self.hindsight:
            pooling_dim = self.hindsight * config.recall_pooling_dim
            self.hindsight_q_proj = nn.Linear(hidden_size, pooling_dim, bias=False)
            self.hindsight_k_proj = nn.Linear(hidden_size, pooling_dim, bias=False)
            self.log_hindsight_slope = nn.Parameter(torch.empty(self.hindsight))
        self.q_proj = _projection(context_dim, config)
        self.k_proj = _projection(context_dim + after_dim, config)
        self.v_proj = nn.Linear(hidden_size, config.recall_value_dim, bias=False)
        self.b_proj = nn.Linear(2 * hidden_size, 1)
        self.g_proj = nn.Linear(hidden_size, 1)
        self.o_proj = nn.Linear(config.recall_value_dim, hidden_size, bias=False)
        self.A_log = nn.Parameter(torch.empty(1))
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """
        What differs from the usual random matrices: S lives long, poolings look at distances only, keys do not look
        ahead yet, half of every token is written, and nothing is read out.
        """
        init.constant_(self.A_log, INITIAL_A_LOG)
        self._init_pooling(self.pool_q_proj, self.pool_k_proj, self.log_slope)
        if self.hindsight:
            self._init_pooling(self.hindsight_q_proj, self.hindsight_k_proj, self.log_hindsight_slope)
            init.zeros_(sees_inputs(self.k_proj).weight[:, self.q_proj.in_features :])
        for module in (self.b_proj, self.g_proj, self.o_proj):
            init.zeros_(module.weight)
        for module in (self.q_proj, self.k_proj, self.g_proj):
            init.zeros_(module.bias)
        init.constant_(self.b_proj.bias, math.log((1 + self.threshold) / (1 - self.threshold)))

    def _init_pooling(self, q_proj: nn.Linear, k_proj: nn.Linear, log_slope: torch.Tensor) -> None:
        slopes = [INITIAL_SLOPES[i % len(INITIAL_SLOPES)] for i in range(len(log_slope))]
        init.copy_(log_slope, torch.tensor(slopes).log())
        init.normal_(k_proj.weight, std=k_proj.in_features**-0.5)
        init.zeros_(q_proj.weight)

    def forward(
        self,
        hidden_states: torch.Tensor,  # (batch, length, hidden_size)
        state: RecallState | None,
        window: Window,
        state_only: bool = False,  # no hidden states, None in their place
    ) -> tuple[torch.Tensor | None, RecallState]:
        """Read S for the tokens of `window`, and keep what is to be written of them."""
        state = state or RecallState()
        y = self.input_layernorm(hidden_states)
        x = y if self.key_layernorm is None else self.key_layernorm(window.key_hidden_states)
        state = state._replace(
            features=window.append(state.features, x),
            pool_keys=window.append(state.pool_keys, self.pool_k_proj(x)),
            values=window.append(state.values, self.v_proj(window.inputs_embeds)),
        )
        if state_only:
            return None, state
        if state.recurrent_state is None:
            return self._unread(hidden_states), state
        query = self.query(self.context(x, state, window.positions))
        return hidden_states + self.read_out(y, recall(query, state.recurrent_state)), state

    def _unread(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """
        The same. In training all parameters have a gradient, 0: DDP ends with an error where one has none, and so does
        `backward` where all else is frozen.
        """
        if not (self.training and torch.is_grad_enabled()):
            return hidden_states
        return hidden_states + sum(0 * parameter.sum().to(hidden_states.dtype) for parameter in self.parameters())

    def begin(self, state: RecallState | None, window: Window) -> RecallState | None:
        """What another pass over the window begins with: the pass before has been written."""
        if state is None or state.features is None:
            return state
        S = self._write(state, window, writes=1, decays=False)
        return state._replace(recurrent_state=S, features=None, pool_keys=None, values=None)

    def forget(self, state: RecallState | None, window: Window) -> RecallState | None:
        """What the next window begins with: S, into which the window has been written `window.passes` times."""
        if state is None or state.features is None:
            return state
        S = self._write(state, window, writes=window.passes, decays=True)
        looks_back = window.keep is not None and self.config.window_overlap > 0  # pinned tokens are no neighbours
        return RecallState(S, **self._keep(state, window)) if looks_back else RecallState(S)

    def fast_weights(self, state: RecallState | None) -> torch.Tensor | None:
        """S, (batch, 1, key_dim, value_dim); None if nothing is in it yet."""
        return None if state is None else state.recurrent_state

    @property
    def feature_norm(self) -> nn.RMSNorm:
        """The norm that gives x."""
        return self.input_layernorm if self.key_layernorm is None else self.key_layernorm

    def context(self, x: torch.Tensor, state: RecallState, positions: torch.Tensor) -> torch.Tensor:
        """
        c of some of the window's tokens.

        Parameters
        ----------
        x : torch.Tensor
            (batch, length, hidden_size) of these tokens.
        state : RecallState
            With the buffers of the window, these tokens included.
        positions : torch.Tensor
            (1 or batch, length): their columns in the buffers; -1 is the last token kept from before the window.

        Returns
        -------
        torch.Tensor
            (batch, length, (2 + poolings) * hidden_size).
        """
        batch, length, _ = x.shape
        features, pool_keys, first, is_any = state.features, state.pool_keys, 0, None
        if state.kept is not None:
            features = torch.cat([state.kept_features, features], dim=1)
            pool_keys = torch.cat([state.kept_pool_keys, pool_keys], dim=1)
            first = -state.kept.shape[1]
            is_any = F.pad(state.kept, (0, state.features.shape[1]), value=True)[:, None, None]
        columns = torch.arange(first, state.features.shape[1], device=x.device)
        distance = (positions.unsqueeze(-1) - columns).unsqueeze(1)  # (1 or batch, 1, length, columns)
        in_span, is_later = (distance > 0) & (distance <= self.span), distance < 0
        if is_any is not None:  # a token always sees itself, as a softmax over nothing would be NaN
            in_span, is_later = in_span & is_any, is_later | (~is_any & (distance != 0))
        mean = in_span.to(x.dtype) / self.span

        pooling = pooling_weights(self.pool_q_proj(x), pool_keys, self.log_slope, distance, is_later)
        weights = torch.cat([mean.expand(batch, -1, -1, -1), pooling], dim=1)
        pooled = weights.flatten(1, 2) @ features
        pooled = pooled.unflatten(1, (-1, length)).to(x.dtype)
        return torch.cat([x.unsqueeze(1), pooled], dim=1).transpose(1, 2).flatten(2)

    def after(self, x: torch.Tensor, live: torch.Tensor | None) -> torch.Tensor:
        """f of a window's tokens, (batch, columns, hindsight * hidden_size), for their x and which columns are any."""
        columns = torch.arange(x.shape[1], device=x.device)
        distance = (columns - columns.unsqueeze(-1)).view(1, 1, len(columns), -1)
        is_hidden = distance < 0
        if live is not None:
            is_hidden = is_hidden | (~live[:, None, None] & (distance != 0))
        queries, keys = self.hindsight_q_proj(x), self.hindsight_k_proj(x)
        weights = pooling_weights(queries, keys, self.log_hindsight_slope, distance, is_hidden)
        return (weights @ x.unsqueeze(1)).transpose(1, 2).flatten(2)

    def query(self, context: torch.Tensor) -> torch.Tensor:
        """q of tokens with these c, (..., key_dim)."""
        return self.features_of(self.q_proj(context))

    def features_of(self, projected: torch.Tensor) -> torch.Tensor:
        """phi of what queries and keys are made of, (..., key_dim)."""
        if not self.products:
            return projected
        first, second = projected.chunk(2, dim=-1)
        return torch.cat([first, first * second], dim=-1)

    def read_out(self, y: torch.Tensor, recalled: torch.Tensor) -> torch.Tensor:
        """What is added to the hidden states, (..., hidden_size), for y and what S gave, (..., value_dim)."""
        return self.o_proj(recalled.to(y.dtype) * (2 * self.g_proj(y).sigmoid()))

    def gates(self, state: RecallState, live: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """
        Whether a window's tokens are worth writing, and what their keys are made of.

        Parameters
        ----------
        state : RecallState
            With the window's buffers.
        live : torch.Tensor | None
            (batch, columns) of bool: which columns hold tokens. None: all.

        Returns
        -------
        tuple[torch.Tensor, torch.Tensor, torch.Tensor]
            [c_{t-1}, f_t], (batch, columns, (2 + poolings + hindsight) * hidden_size); log_decay and beta, (batch,
            columns), in float32 or better.
        """
        x = state.features
        dtype = torch.promote_types(x.dtype, torch.float32)
        columns = torch.arange(x.shape[1], device=x.device).unsqueeze(0)
        is_first = columns == 0
        if state.kept is None:
            previous, known = _previous(x), _previous(self.context(x, state, columns))
        else:
            previous = torch.cat([state.kept_features[:, -1:], x[:, :-1]], dim=1)
            known = self.context(previous, state, columns - 1)
            is_first = is_first & ~state.kept[:, -1:]
        if self.hindsight:
            known = torch.cat([known, self.after(x, live)], dim=-1)
        beta = self.b_proj(torch.cat([x, previous], dim=-1)).squeeze(-1).to(dtype).sigmoid()
        beta = ((beta - self.threshold) / (1 - self.threshold)).relu()
        beta = beta.masked_fill(is_first, 0)
        log_decay = -self.A_log.to(dtype).exp().expand_as(beta)
        if live is not None:
            beta, log_decay = (y.masked_fill(~live, 0) for y in (beta, log_decay))
        return known, log_decay, beta

    def key(self, known: torch.Tensor) -> torch.Tensor:
        """k of tokens, (..., key_dim), of whose [c_{t-1}, f_t] this is; in float32 or better."""
        return self.features_of(self.k_proj(known)).to(torch.promote_types(known.dtype, torch.float32))

    def _write(self, state: RecallState, window: Window, writes: int, decays: bool) -> torch.Tensor:
        """S, into which the window's tokens have been written."""
        known, log_decay, beta = self.gates(state, window.live)
        if window.written is not None:
            beta = beta.masked_fill(~window.written, 0)
        key, value, S = self.key(known), state.values.to(beta.dtype), state.recurrent_state
        for n in range(writes):
            if n > 0 or not decays:
                log_decay = torch.zeros_like(log_decay)
            S = write(key, value, log_decay, beta, S)
        return S

    def _keep(self, state: RecallState, window: Window) -> dict[str, torch.Tensor]:
        """Of the window's tokens and those kept before it, what the next window looks back at."""
        x, pool_keys, kept = state.features, state.pool_keys, window.live
        if kept is None:
            kept = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
        before = (state.kept_features, state.kept_pool_keys, state.kept)
        overlap = self.config.window_overlap
        pinned = window.keep.order.shape[1] - overlap
        order = window.keep.order[:, pinned:] - pinned  # a pinned token is attended to, and no neighbour of any window
        chosen = []
        for new, old in zip((x, pool_keys, kept), before, strict=True):
            if old is None:
                old = new.new_zeros(new.shape[0], overlap, *new.shape[2:])
            chosen.append(select(torch.cat([old, new], dim=1), order, 1))
        return dict(zip(("kept_features", "kept_pool_keys", "kept"), chosen, strict=True))


def _projection(in_features: int, config: SleepConfig) -> nn.Linear | LowRankLinear:
    """A or B, with its bias."""
    if config.recall_key_rank is None:
        return nn.Linear(in_features, config.recall_key_dim)
    return LowRankLinear(in_features, config.recall_key_dim, config.recall_key_rank)


def sees_inputs(projection: nn.Linear | LowRankLinear) -> nn.Linear:
    """Of A or B, the map that is applied first."""
    return projection.down if isinstance(projection, LowRankLinear) else projection


def pooling_weights(
    queries: torch.Tensor, keys: torch.Tensor, log_slope: torch.Tensor, distance: torch.Tensor, is_hidden: torch.Tensor
) -> torch.Tensor:
    """
    How much each pooling of a token sees of each column.

    Parameters
    ----------
    queries, keys : torch.Tensor
        (batch, length or columns, poolings * pooling_dim).
    log_slope : torch.Tensor
        (poolings,): logarithms of what a step of distance costs.
    distance, is_hidden : torch.Tensor
        (1 or batch, 1, length, columns): in tokens; and which columns a token must not see.

    Returns
    -------
    torch.Tensor
        (batch, poolings, length, columns), in the dtype of the queries.
    """
    queries, keys = (y.unflatten(-1, (len(log_slope), -1)).transpose(1, 2) for y in (queries, keys))
    scores = queries @ keys.mT
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    scores = scores - log_slope.to(scores.dtype).exp().view(-1, 1, 1) * distance
    return scores.masked_fill(is_hidden, -torch.inf).softmax(-1).to(queries.dtype)


def recall(query: torch.Tensor, recurrent_state: torch.Tensor) -> torch.Tensor:
    """S^T q of L2-normalised queries, (batch, length, key_dim), as (batch, length, value_dim) in the dtype of S."""
    query = l2_normalise(query.to(recurrent_state.dtype))
    with _no_autocast(query.device):
        return query @ recurrent_state.squeeze(1)


def write(
    key: torch.Tensor,
    value: torch.Tensor,
    log_decay: torch.Tensor,
    beta: torch.Tensor,
    recurrent_state: torch.Tensor | None,
) -> torch.Tensor:
    """
    S after the gated delta rule over keys (batch, length, key_dim), values (batch, length, value_dim), log_decay and
    beta (batch, length).
    """
    key, value, log_decay, beta = (x.unsqueeze(2) for x in (key, value, log_decay, beta))
    return gated_delta_rule(key, key, value, log_decay, beta, recurrent_state)[1]


def _previous(x: torch.Tensor) -> torch.Tensor:
    """Of each token, (batch, columns, ...), what belongs to the one before it; zeros before the first."""
    return F.pad(x[:, :-1], (0, 0, 1, 0))
