"""The gated delta rule: the learned local rule by which every token rewrites the fast weights S.

For each head, with key k, value v, query q and the gates alpha (decay) and beta (step size) of token t
(arXiv 2605.26099, section 2; arXiv 2412.06464, equation 10), and S of shape (key_dim, value_dim), which is the
transpose of the paper's:

    S_t = alpha_t (I - beta_t k_t k_t^T) S_{t-1} + beta_t k_t v_t^T          o_t = S_t^T q_t

Notable:
- two equal forms: `recurrent`, token by token, for one token; `chunked`, matrix products over chunks, for the rest;
- functional: the state comes in and goes out, no input is written to, gradients flow through both;
- in torch, float32 or better whatever the model's dtype: float64 stays float64;
- queries and keys are L2-normalised here, queries scaled by key_dim^-1/2;
- a token with beta = 0 and log(alpha) = 0 leaves S exactly as it was: that is how masked tokens pass;
- on CUDA in half precision, the Triton kernels of `fla` run if it is installed: S stays float32, but chunks are
  multiplied in half precision (`fla_sleep.py` says what that costs).
"""

import contextlib
import functools

import torch
import torch.nn.functional as F
from transformers.utils import logging

from .fla_sleep import fla_fits, fla_gated_delta_rule


logger = logging.get_logger(__name__)

EPS = 1e-6  # under the root of the norm
# Up to so many entries, within a model, the kernel of a matrix product takes longer to get going than it saves.
SMALL_STATE = 2**16


def l2_normalise(x: torch.Tensor, eps: float = EPS) -> torch.Tensor:
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
    if fla_fits(query, key, value):
        _log_kernel("the Triton kernels of `fla`", value.device.type)
        return fla_gated_delta_rule(query, key, value, log_decay, beta, initial_state)
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
    query = l2_normalise(query) * query.shape[-1] ** -0.5
    key = l2_normalise(key)
    # Vectors are rows, gates matrices of one entry.
    inputs = *(x.unsqueeze(-2) for x in (query, key, value)), *(x[..., None, None] for x in (log_decay.exp(), beta))
    outputs = []
    for query, key, value, alpha, beta in zip(*(x.unbind(1) for x in inputs), strict=True):
        state = alpha * state
        error = value - _read(key, state)  # what S does not yet answer to this key
        # In place where nobody keeps the decayed S: for a large one, fresh memory costs more than the arithmetic.
        write = torch.addcmul if torch.is_grad_enabled() else torch.Tensor.addcmul_
        state = write(state, key.mT, beta * error)
        outputs.append(_read(query, state).squeeze(-2))
    return torch.stack(outputs, dim=1).to(dtype), state


def _read(vector: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
    """S^T `vector`, as rows: (batch, heads, 1, key_dim) of (batch, heads, key_dim, value_dim)."""
    if state.numel() <= SMALL_STATE and not torch.compiler.is_compiling():
        return (vector.mT * state).sum(-2, keepdim=True)
    with _no_autocast(state.device):
        return vector @ state


def chunked_gated_delta_rule(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    log_decay: torch.Tensor,
    beta: torch.Tensor,
    initial_state: torch.Tensor | None = None,
    chunk_size: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    The rule in chunks of at most `chunk_size` tokens (arXiv 2412.06464, section 3.3). Same as `gated_delta_rule`.

    Has first derivatives only: a second one raises an error.
    """
    dtype, seq_len = value.dtype, value.shape[1]
    *inputs, state = _prepare(query, key, value, log_decay, beta, initial_state)
    if chunk_size is None:
        chunk_size = 32 if value.device.type == "cpu" else 64  # the least work on a CPU; a GPU wants few steps
    # As few chunks as possible, of equal size, so that a short window pays for no padding.
    num_chunks = -(-seq_len // chunk_size)
    if padding := -seq_len % num_chunks:  # beta = 0 and log(alpha) = 0: no-ops
        inputs = [F.pad(x, (0, 0) * (x.ndim - 2) + (0, padding)) for x in inputs]
    # What is exported with gradients on is a program without a backward, as the rule's own is none that can be traced.
    with torch.no_grad() if torch.compiler.is_exporting() else contextlib.nullcontext():
        output, state = _ChunkedRule.apply(*inputs, state, num_chunks)
    return output[:, :seq_len].to(dtype), state


def _prepare(query, key, value, log_decay, beta, initial_state):
    """All in float32, or in float64 if one is; one query and key per value head, and a state to begin with."""
    inputs = (query, key, value, log_decay, beta)
    dtype = torch.float64 if any(x.dtype == torch.float64 for x in inputs) else torch.float32
    query, key, value, log_decay, beta = (x.to(dtype) for x in inputs)
    if (groups := value.shape[2] // key.shape[2]) > 1:
        query, key = (x.repeat_interleave(groups, dim=2) for x in (query, key))
    if initial_state is None:
        initial_state = value.new_zeros(value.shape[0], value.shape[2], key.shape[-1], value.shape[-1])
    return query, key, value, log_decay, beta, initial_state.to(dtype)


def _no_autocast(device: torch.device):
    """Products stay in the precision of what they are given. Devices without autocast, as "meta", raise if asked."""
    on = torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)
    return torch.autocast(device.type, enabled=False) if on else contextlib.nullcontext()


def _without_autocast(function):
    """`_no_autocast` for a method of an autograd.Function."""

    @functools.wraps(function)
    def wrapped(ctx, tensor, *others):
        with _no_autocast(tensor.device):
            return function(ctx, tensor, *others)

    return wrapped


class _ChunkedRule(torch.autograd.Function):
    """
    The rule in chunks with a backward by hand, which keeps and takes much less than what autograd would do.

    Let S be the state at a chunk's start and b_i = alpha_1 ... alpha_i since then. What S, by then, does not answer to
    a key is e_i = v_i - (b_i S^T k_i + sum_{j < i} b_i / b_j (k_i . k_j) beta_j e_j), or (I + A) e = v - (b k) S. The
    outputs are those same brackets with q_i for k_i and j <= i; the new S is b_C S + sum_j b_C / b_j beta_j k_j e_j^T.

    So queries and keys read alike, and stand below each other as `reads`; keys also write. Where b_i stands, it
    multiplies the read i or divides the write i, and beta_i multiplies that write. So the gradient of log(b_i) is
    q_i . dq_i + k_i . dk_i by reading - k_i . dk_i by writing, and that of beta_i is the last over beta_i; b_C has the
    new S times its gradient besides. All is laid out as (chunks * batch * heads, tokens, dim).
    """

    @staticmethod
    @_without_autocast
    def forward(ctx, query, key, value, log_decay, beta, state, num_chunks):
        size = value.shape[1] // num_chunks
        ctx.by_head = (num_chunks, value.shape[0], value.shape[2])
        by_chunk = (num_chunks, -1)
        reads = torch.cat([_by_chunks(query, num_chunks), _by_chunks(key, num_chunks)], dim=-2).flatten(0, 2)
        # As in `l2_normalise`. In place, here and below: fresh memory costs more than the arithmetic on it.
        scale = torch.linalg.vector_norm(reads, dim=-1, keepdim=True).square_().add_(EPS).rsqrt_()
        scale[:, :size] *= query.shape[-1] ** -0.5
        reads *= scale
        log_b, beta = (_by_chunks(x.unsqueeze(-1), num_chunks).flatten(0, 2) for x in (log_decay, beta))
        log_b = log_b.cumsum(1)
        b_reads, b_writes, b_last = _decayed(reads, log_b, beta)

        # b_i / b_j for j <= i and for j < i. The upper triangle is cut before exp, where it would overflow, and after.
        pairwise = (log_b - log_b.mT).tril_().exp_().tril_()
        pairwise = torch.cat([pairwise, pairwise.tril(-1)], dim=1)
        attention = (reads @ reads[:, size:].mT).mul_(pairwise).mul_(beta.mT)
        # (I + A)^-1; of A, the solver reads the strictly lower triangle alone. It is given the transpose, as it works
        # on columns: rows it would copy into columns and back.
        A, identity = attention[:, size:], torch.eye(size, dtype=beta.dtype, device=beta.device)
        inverse = torch.linalg.solve_triangular(A.mT, identity, upper=True, left=False, unitriangular=True).mT

        values = _by_chunks(value, num_chunks).flatten(1, 2)
        errors = torch.empty_like(values, memory_format=torch.contiguous_format)
        states = state.new_empty(num_chunks + 1, *values.shape[1:2], *state.shape[2:])
        states[0] = state.flatten(0, 1)
        chunks = (x.unflatten(0, by_chunk) for x in (b_reads[:, size:], b_writes, b_last, inverse))
        for n, (b_keys, writes, decay, solve) in enumerate(zip(*(x.unbind(0) for x in chunks), strict=True)):
            torch.bmm(solve, torch.baddbmm(values[n], b_keys, states[n], alpha=-1), out=errors[n])
            torch.mul(states[n], decay, out=states[n + 1]).baddbmm_(writes.mT, errors[n])

        errors = errors.flatten(0, 1)
        output = (b_reads[:, :size] @ states[:-1].flatten(0, 1)).baddbmm_(attention[:, :size], errors)
        ctx.save_for_backward(reads, scale, log_b, beta, pairwise, attention, inverse, errors, states)
        return _by_tokens(output, ctx.by_head), states[-1].clone().view_as(state)

    @staticmethod
    @_without_autocast
    def backward(ctx, output_grad, state_grad):
        # `once_differentiable` would be silent where the gradients that come in are constants.
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            raise RuntimeError(
                "Second derivatives go through `recurrent_gated_delta_rule` only, not the chunked form."
            )
        reads, scale, log_b, beta, pairwise, attention, inverse, errors, states = ctx.saved_tensors
        size, by_chunk = log_b.shape[1], (ctx.by_head[0], -1)
        b_reads, b_writes, b_last = _decayed(reads, log_b, beta)
        keys = reads[:, size:]

        # The gradients of what queries and keys read, the latter minus that of v: the loop fills them in.
        read_grads = errors.new_zeros(*reads.shape[:2], errors.shape[-1])
        read_grads[:, :size] = _by_chunks(output_grad, by_chunk[0]).flatten(0, 2)
        error_grads = (attention[:, :size].mT @ read_grads[:, :size]).unflatten(0, by_chunk)
        state_grads = torch.empty_like(states)
        state_grads[-1] = state_grad.flatten(0, 1)
        chunks = [x.unflatten(0, by_chunk) for x in (b_reads, b_writes, b_last, inverse, read_grads)]
        for n in reversed(range(by_chunk[0])):
            b_read, write, decay, solve, read_grad = (x[n] for x in chunks)
            error_grad = error_grads[n].baddbmm_(write, state_grads[n + 1])
            read_grad[:, size:].sub_(solve.mT @ error_grad)
            torch.mul(state_grads[n + 1], decay, out=state_grads[n]).baddbmm_(b_read.mT, read_grad)

        pairwise = (read_grads @ errors.mT).mul_(pairwise)
        reads_grad = (read_grads @ states[:-1].flatten(0, 1).mT).unflatten(1, (2, size)).mul_(log_b.exp().unsqueeze(1))
        reads_grad = reads_grad.flatten(1, 2).baddbmm_(pairwise, keys * beta)
        writes_grad = (errors @ state_grads[1:].flatten(0, 1).mT).mul_((log_b[:, -1:] - log_b).exp_())
        writes_grad.baddbmm_(pairwise.mT, reads)  # but for beta

        along_reads = (reads * reads_grad).sum(-1, keepdim=True)
        beta_grad = (keys * writes_grad).sum(-1, keepdim=True)
        along_writes = beta * beta_grad
        log_b_grad = along_reads[:, :size] + along_reads[:, size:] - along_writes
        log_b_grad[:, -1, 0] += (state_grads[1:] * states[1:]).sum((-1, -2)).flatten()
        log_decay_grad = log_b_grad.flip(1).cumsum(1).flip(1)

        # Back through the normalisation, reads = scale * raw: what points along the reads is taken out.
        reads_grad[:, size:].addcmul_(writes_grad, beta)
        along_reads[:, size:] += along_writes
        along_reads[:, :size] *= reads.shape[-1]
        reads_grad.addcmul_(reads, along_reads, value=-1).mul_(scale)

        grads = (reads_grad[:, :size], reads_grad[:, size:], read_grads[:, size:], log_decay_grad, beta_grad)
        query_grad, key_grad, value_grad, log_decay_grad, beta_grad = (_by_tokens(x, ctx.by_head) for x in grads)
        # Contiguous, as torch.compile is wrong about the layout of softplus' gradient otherwise (torch 2.13).
        gates = (x.squeeze(-1).contiguous() for x in (log_decay_grad, beta_grad))
        return query_grad, key_grad, value_grad.neg_(), *gates, state_grads[0].view_as(state_grad), None


def _by_chunks(x, num_chunks):
    """(batch, seq_len, heads, ...) as (chunks, batch, heads, chunk_size, ...)."""
    return x.unflatten(1, (num_chunks, -1)).transpose(0, 1).transpose(2, 3)


def _by_tokens(x, by_head):
    """(chunks * batch * heads, chunk_size, dim) as (batch, seq_len, heads, dim)."""
    return x.unflatten(0, by_head).transpose(2, 3).transpose(0, 1).flatten(1, 2)


def _decayed(reads, log_b, beta):
    """b_i reads_i, beta_j b_C / b_j keys_j, and b_C."""
    b_reads = (reads.unflatten(1, (2, -1)) * log_b.exp().unsqueeze(1)).flatten(1, 2)
    b_writes = reads[:, log_b.shape[1] :] * (log_b[:, -1:] - log_b).exp_().mul_(beta)
    return b_reads, b_writes, log_b[:, -1:].exp()


@torch.compiler.assume_constant_result  # a compiled model says so while it is traced
def _log_kernel(kernel: str, device: str):
    logger.info_once(f"The gated delta rule on {device} runs in {kernel}.")
