"""One contract for every kind of layer: what is said atop layers_sleep.py holds, whoever the layer is.

A layer meets windows as the model makes them (`new_window`), so that positions, masks and the order of ragged rows are
the real ones.
"""

import pytest
import torch
from families import make_original
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.checkpoint import checkpoint

from modeling_sleep import SleepConfig
from modeling_sleep.cache_sleep import SleepState
from modeling_sleep.family_layers_sleep import family_base_config
from modeling_sleep.masks_sleep import live_columns, new_window
from modeling_sleep.modeling_sleep import SleepModel
from modeling_sleep.window_sleep import added, largest, per_row


L, HIDDEN = 12, 32
OURS = dict(
    vocab_size=61,
    hidden_size=HIDDEN,
    num_hidden_layers=3,
    num_attention_heads=4,
    window_size=L,
    layer_types=["sleep_attention", "linear_attention", "recall_memory"],
    memory_layers=[2],
    recall_key_dim=16,
    recall_value_dim=8,
    recall_pooling_dim=4,
    recall_hindsight=2,
    recall_products=True,
    recall_key_rank=8,
    recall_threshold=0.5,
    initializer_range=0.3,
)
FAMILIES = ("olmo_hybrid", "qwen3_5_text", "qwen3_next")


def build(name: str):
    """A layer and the configuration it is made of, in float64."""
    torch.manual_seed(0)
    if name in OURS["layer_types"]:
        model = SleepModel(SleepConfig(**OURS))
        layer = model.layers[OURS["layer_types"].index(name)]
    else:
        family, layer_type = name.split("/")
        config = SleepConfig(base_config=family_base_config(make_original(family).config), window_size=L)
        model = SleepModel(config)
        layer = model.layers[config.layer_types.index(layer_type)]
    layer = layer.double().eval()
    with torch.no_grad():
        for parameter in layer.parameters():  # what begins at zero would show nothing
            parameter.add_(0.2 * torch.randn_like(parameter))
    return layer, model.config


LAYERS = [*OURS["layer_types"], *(f"{f}/{t}" for f in FAMILIES for t in ("sleep_attention", "linear_attention"))]
every_layer = pytest.mark.parametrize("name", LAYERS)


class Reader:
    """Reads a window through one layer, piece by piece, as the model does for a whole stack."""

    def __init__(self, layer, config, state=None):
        self.layer, self.config = layer, config
        self.layer_state, self.at = state, SleepState.empty(1)

    def read(self, hidden_states, embeds, lengths=None):
        lengths = hidden_states.shape[1] if lengths is None else per_row(lengths)
        window = new_window(self.config, self.at, embeds, lengths, 1, {})
        output, self.layer_state = self.layer(hidden_states, self.layer_state, window)
        stored = added(self.at.stored, lengths)
        columns = largest(stored) if window.order is not None else self.at.columns + hidden_states.shape[1]
        self.at = self.at._replace(stored=stored, columns=columns)
        return output

    def forget(self, passes=1):
        columns = self.at.columns
        batch = next(x for x in tree_leaves(self.layer_state) if x is not None).shape[0]
        live = live_columns(self.at.stored, batch, columns, torch.device("cpu"))
        window = new_window(self.config, SleepState.empty(1), torch.zeros(batch, columns, 1), self.at.stored, 1, {})
        self.layer_state = self.layer.forget(self.layer_state, window._replace(live=live, passes=passes))
        self.at = SleepState.empty(1)
        return self.layer_state


def inputs(config, batch=2, length=L, seed=1):
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, length, config.hidden_size)
    return tuple(torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))


def remembered(layer, config, seed=7):
    """What the layer brings into a second window."""
    reader = Reader(layer, config)
    reader.read(*inputs(config, seed=seed))
    return reader.forget()


def close(first, second, name=""):
    tolerance = 1e-6 if "/" in name else 1e-9  # a family's gated norm computes in float32
    for ours, theirs in zip(tree_leaves(first), tree_leaves(second), strict=True):
        if theirs is not None:
            torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=0)


@every_layer
@pytest.mark.parametrize("sizes", [[1] * L, [5, 1, 6], [11, 1]], ids=["token by token", "in pieces", "split"])
@torch.no_grad()
def test_pieces_give_what_the_whole_gives(name, sizes):
    layer, config = build(name)
    hidden_states, embeds = inputs(config)
    state = remembered(layer, config)
    whole, pieces = Reader(layer, config, state), Reader(layer, config, state)
    expected = whole.read(hidden_states, embeds)
    found = [pieces.read(h, e) for h, e in zip(hidden_states.split(sizes, 1), embeds.split(sizes, 1), strict=True)]
    close(torch.cat(found, dim=1), expected, name)
    close(pieces.layer_state, whole.layer_state, name)
    close(pieces.forget(passes=3), whole.forget(passes=3), name)


@every_layer
@torch.no_grad()
def test_rows_that_differ_give_what_each_gives_alone(name):
    """Padding stands behind a row's tokens, and rows stand at different places of their windows."""
    layer, config = build(name)
    hidden_states, embeds = inputs(config)
    together, lengths = Reader(layer, config), ([5, 2], [1, 3], [4, 6])
    begin, found = [0, 0], [[], []]
    for wave in lengths:
        most = max(wave)
        index = torch.tensor([[min(b + i, b + n - 1) for i in range(most)] for b, n in zip(begin, wave, strict=True)])
        rows = torch.arange(2).unsqueeze(1)
        output = together.read(hidden_states[rows, index], embeds[rows, index], wave)
        for row in range(2):
            found[row].append(output[row : row + 1, : wave[row]])
        begin = [b + n for b, n in zip(begin, wave, strict=True)]
    after = together.forget(passes=2)
    for row in range(2):
        alone = Reader(layer, config)
        one = slice(row, row + 1)
        expected = alone.read(hidden_states[one, : begin[row]], embeds[one, : begin[row]])
        close(torch.cat(found[row], dim=1), expected, name)
        close(tree_map(lambda x, one=one: None if x is None else x[one], after), alone.forget(passes=2), name)


@every_layer
@torch.no_grad()
def test_masked_tokens_leave_what_outlives_the_window_as_it_was(name):
    """To the bit: a piece in which the second row reads nothing of its own but padding."""
    layer, config = build(name)
    hidden_states, embeds = inputs(config)
    reader = Reader(layer, config, remembered(layer, config))
    reader.read(hidden_states[:, :4], embeds[:, :4])
    before = layer.fast_weights(reader.layer_state)
    before = None if before is None else before.clone()
    window = new_window(config, reader.at, embeds[:, 4:6], (2, 0), 1, {})
    _, state = layer(hidden_states[:, 4:6], reader.layer_state, window)
    if before is not None:
        assert layer.fast_weights(state)[1].equal(before[1])


@every_layer
def test_gradients_reach_what_was_remembered_and_are_those_of_a_checkpoint(name):
    layer, config = build(name)
    hidden_states, embeds = inputs(config)
    gradients = []
    for checkpointed in (False, True):
        first = Reader(layer, config)
        earlier = inputs(config, seed=3)[0].requires_grad_()
        first.read(earlier, embeds)
        second = Reader(layer, config, first.forget(passes=2))
        if checkpointed:
            window = new_window(config, second.at, embeds, L, 1, {})
            output, _ = checkpoint(layer, hidden_states, second.layer_state, window, use_reentrant=False)
        else:
            output = second.read(hidden_states, embeds)
        layer.zero_grad()
        output.square().sum().backward()
        gradients.append([p.grad for p in layer.parameters()] + [earlier.grad])
    close(gradients[1], gradients[0])
    remembers = layer.is_memory
    assert (gradients[0][-1] is not None and gradients[0][-1].abs().max() > 0) == remembers


@every_layer
@torch.no_grad()
def test_a_state_is_never_written_in_place(name):
    layer, config = build(name)
    state = remembered(layer, config)
    copy = tree_map(lambda x: None if x is None else x.clone(), state)
    reader = Reader(layer, config, state)
    reader.read(*inputs(config))
    middle = tree_map(lambda x: None if x is None else x.clone(), reader.layer_state)
    held = reader.layer_state
    reader.forget(passes=2)
    for before, after in ((copy, state), (middle, held)):
        for ours, theirs in zip(tree_leaves(before), tree_leaves(after), strict=True):
            assert (ours is None and theirs is None) or ours.equal(theirs)


@every_layer
@torch.no_grad()
def test_a_compiled_layer_gives_the_same(name):
    layer, config = build(name)
    state = remembered(layer, config)
    expected = Reader(layer, config, state).read(*inputs(config))
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True, dynamic=False)
    close(Reader(compiled, config, state).read(*inputs(config)), expected)


@every_layer
@torch.no_grad()
def test_only_memories_have_fast_weights(name):
    layer, config = build(name)
    state = remembered(layer, config)
    S = layer.fast_weights(state)
    assert (S is not None) == layer.is_memory
    window = new_window(config, SleepState.empty(1), inputs(config)[1], L, 1, {})
    assert layer.fast_weights(None) is layer.forget(None, window) is layer.begin(None, window) is None
