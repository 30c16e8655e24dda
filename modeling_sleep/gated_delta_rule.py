"""The gated delta rule: the learned local rule by which every token rewrites the fast weights S.

For each head, with key k, value v, query q and the gates alpha (decay) and beta (step size) of token t
(arXiv 2605.26099, section 2; arXiv 2412.06464, equation 10), and S of shape (key_dim, value_dim), which is the
transpose of the paper's:

    S_t = alpha_t (I - beta_t k_t k_t^T) S_{t-1} + beta_t k_t v_t^T          o_t = S_t^T q_t

Notable:
- two equal forms: `recurrent`, token by token, for one token; `chunked`, matrix products over chunks, for the rest;
- functional: the state comes in and goes out, nothing is written in place, gradients flow through both;
- float32 or better whatever the model's dtype: float64 stays float64;
- queries and keys are L2-normalised here, queries scaled by key_dim^-1/2;
- a token with beta = 0 and log(alpha) = 0 leaves S exactly as it was: that is how masked tokens pass;
- on CUDA in half precision, the Triton kernels of `fla` run if it is installed (their state is float32).
"""

import functools
import importlib.util

import torch
import torch.nn.functional as F
from transformers.utils import logging


logger = logging.get_logger(__name__)

CHUNK_SIZE = 64


def l2_normalise(x: torch.Tensor, eps: float = 1e-6) -> torch.Tensor:
    """x / sqrt(|x|^2 + eps) over the last dimension: a vector of zeros stays one, with finite gradients."""
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + eps)


def gated_delta_rule(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    log_decay: torch.Tensor,
    beta: torch.Tensor,
    initial_state: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Run the gated delta rule over a sequence with the fastest form that fits the call.

    Parameters
    ----------
    query, key : torch.Tensor
        (batch, seq_len, key_heads, key_dim), not yet normalised.
    value : torch.Tensor
        (batch, seq_len, value_heads, value_dim); `value_heads` is a multiple of `key_heads`.
    log_decay : torch.Tensor
        log(alpha), (batch, seq_len, value_heads), not positive.
    beta : torch.Tensor
        (batch, seq_len, value_heads), in (0, 1) or (0, 2).
    initial_state : torch.Tensor, optional
        S before the first token, (batch, value_heads, key_dim, value_dim). Zeros by default.

    Returns
    -------
    output : torch.Tensor
        (batch, seq_len, value_heads, value_dim), in the dtype of `value`.
    final_state : torch.Tensor
        S after the last token, (batch, value_heads, key_dim, value_dim), in float32 or better.
    """
    if _fla_fits(value):
        _log_kernel("the Triton kernels of `fla`", value.device.type)
        return _fla(query, key, value, log_decay, beta, initial_state)
    _log_kernel("plain torch", value.device.type)
    rule = recurrent_gated_delta_rule if value.shape[1] == 1 else chunked_gated_delta_rule
    return rule(query, key, value, log_decay, beta, initial_state)


def recurrent_gated_delta_rule(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    log_decay: torch.Tensor,
    beta: torch.Tensor,
    initial_state: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The rule as it is written, token by token. Same parameters and return as `gated_delta_rule`."""
    dtype = value.dtype
    query, key, value, log_decay, beta, state = _prepare(query, key, value, log_decay, beta, initial_state)
    alpha = log_decay.exp()[..., None, None]
    beta = beta[..., None, None]
    query, key = query.unsqueeze(-1), key.unsqueeze(-1)  # columns
    value = value.unsqueeze(-2)  # rows

    outputs = []
    for t in range(value.shape[2]):
        state = alpha[:, :, t] * state
        error = value[:, :, t] - key[:, :, t].mT @ state  # what S does not yet answer to this key
        state = state + key[:, :, t] @ (beta[:, :, t] * error)
        outputs.append(query[:, :, t].mT @ state)
    output = torch.cat(outputs, dim=2)  # (batch, heads, seq_len, value_dim)
    return output.transpose(1, 2).to(dtype), state


def chunked_gated_delta_rule(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    log_decay: torch.Tensor,
    beta: torch.Tensor,
    initial_state: torch.Tensor | None = None,
    chunk_size: int = CHUNK_SIZE,
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    The rule in chunks of at most `chunk_size` tokens (arXiv 2412.06464, section 3.3). Same as `gated_delta_rule`.

    Within a chunk, the corrections u_t = beta_t (v_t - alpha_t S_{t-1}^T k_t) depend on each other through a lower
    triangular system. One solve gives both its parts, the one of the values and the one that S at the chunk's start
    takes away; S then moves from chunk to chunk by matrix products.
    """
    dtype, seq_len = value.dtype, value.shape[1]
    query, key, value, log_decay, beta, state = _prepare(query, key, value, log_decay, beta, initial_state)

    # As few chunks as possible, of equal size, so that a short window pays for no padding.
    num_chunks = -(-seq_len // chunk_size)
    chunk_size = -(-seq_len // num_chunks)
    if padding := num_chunks * chunk_size - seq_len:  # beta = 0 and log(alpha) = 0: no-ops
        query, key, value = (F.pad(x, (0, 0, 0, padding)) for x in (query, key, value))
        log_decay, beta = (F.pad(x, (0, padding)) for x in (log_decay, beta))
    # (batch, heads, chunks, chunk_size, dim)
    query, key, value = (x.unflatten(2, (num_chunks, chunk_size)) for x in (query, key, value))
    log_decay, beta = (x.unflatten(2, (num_chunks, chunk_size)) for x in (log_decay, beta.unsqueeze(-1)))

    decay_since_start = log_decay.cumsum(-1).unsqueeze(-1)  # log of alpha_1 ... alpha_t
    decay_until_end = decay_since_start[..., -1:, :] - decay_since_start
    # alpha_{j+1} ... alpha_i for j <= i; the upper triangle is cut before exp, where it would overflow, and after.
    pairwise = (decay_since_start - decay_since_start.mT).tril().exp().tril()

    # (I + A) [u | w] = [beta v | beta alpha k]; the solver reads the strictly lower triangle of A alone. It is given
    # the transpose of it all, as it works on columns: rows it would copy into columns and back.
    system = (key @ key.mT) * (pairwise * beta)
    right_side = torch.cat([value * beta, key * (decay_since_start.exp() * beta)], dim=-1)
    solution = torch.linalg.solve_triangular(system.mT, right_side.mT, upper=True, left=False, unitriangular=True).mT
    from_values, from_state = solution.split([value.shape[-1], key.shape[-1]], dim=-1)

    attention = (query @ key.mT) * pairwise
    query = query * decay_since_start.exp()
    key = key * decay_until_end.exp()
    chunk_decay = decay_since_start[..., -1:, :].exp()

    outputs = []
    # Unbound, not indexed: the gradient of an index is a tensor of zeros as large as all chunks, for every chunk.
    chunks = (x.unbind(2) for x in (query, key, attention, from_values, from_state, chunk_decay))
    for query, key, attention, from_values, from_state, decay in zip(*chunks, strict=True):
        correction = from_values - from_state @ state
        outputs.append(query @ state + attention @ correction)
        state = decay * state + key.mT @ correction
    output = torch.cat(outputs, dim=2)[:, :, :seq_len]
    return output.transpose(1, 2).to(dtype), state


def _prepare(query, key, value, log_decay, beta, initial_state):
    """Heads first, float32 or better, normalised, one query and key per value head, and a state to begin with."""
    inputs = (query, key, value, log_decay, beta)
    dtype = torch.float64 if any(x.dtype == torch.float64 for x in inputs) else torch.float32
    # Laid out so too: every matrix product to come would else make its own copy.
    query, key, value, log_decay, beta = (x.transpose(1, 2).to(dtype).contiguous() for x in inputs)
    query = l2_normalise(query) * query.shape[-1] ** -0.5
    key = l2_normalise(key)
    if (groups := value.shape[1] // key.shape[1]) > 1:
        query, key = (x.repeat_interleave(groups, dim=1) for x in (query, key))
    if initial_state is None:
        initial_state = value.new_zeros(*value.shape[:2], key.shape[-1], value.shape[-1])
    return query, key, value, log_decay, beta, initial_state.to(dtype)


@functools.cache
def _fla_is_installed() -> bool:
    return importlib.util.find_spec("fla") is not None


def _fla_fits(value: torch.Tensor) -> bool:
    # Decided per call: a model on the CPU of a machine with fla must not end in its kernels. They are made for half
    # precision; float32 and float64 stay exact in torch.
    return value.is_cuda and value.dtype in (torch.bfloat16, torch.float16) and _fla_is_installed()


def _fla(query, key, value, log_decay, beta, initial_state):
    # No import statement, here neither: loading code from the Hub, transformers asks for all that stand in a file.
    fla = importlib.import_module("fla.ops.gated_delta_rule")

    # The fused recurrent kernel has no backward.
    one_token_awake = value.shape[1] == 1 and not torch.is_grad_enabled()
    rule = fla.fused_recurrent_gated_delta_rule if one_token_awake else fla.chunk_gated_delta_rule
    return rule(
        query,
        key,
        value,
        g=log_decay.float(),
        beta=beta.to(value.dtype),
        initial_state=None if initial_state is None else initial_state.float(),
        output_final_state=True,
        use_qk_l2norm_in_kernel=True,
    )


def _log_kernel(kernel: str, device: str):
    logger.info_once(f"The gated delta rule on {device} runs in {kernel}.")
