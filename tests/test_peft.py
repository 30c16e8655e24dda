"""PEFT: adapters are trained through sleeps, act in every pass, are merged, saved, and loaded on remote code."""

import copy
import sys

import peft
import pytest
import torch
from builders import random_ids, tiny_model
from packaging.version import Version
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora.corda import preprocess_corda
from peft.utils import constants
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from transformers.dynamic_module_utils import get_imports
from transformers.integrations import peft as integration

from modeling_sleep import Sleep, SleepConfig, SleepForCausalLM, SleepModel, memory_target_modules
from modeling_sleep.hub_upload import clean_room
from modeling_sleep.peft_sleep import register_target_modules


# B is not zero, so that adapters act from the start, and A has gradients.
LORA = dict(task_type="CAUSAL_LM", r=4, lora_alpha=2, init_lora_weights=False)
MEMORY = memory_target_modules(SleepConfig.from_preset("tiny"))
MERGEABLE = {
    "LoRA": LoraConfig(**LORA, target_modules="all-linear"),
    "rsLoRA": LoraConfig(**LORA, target_modules=MEMORY, use_rslora=True),
    "DoRA": LoraConfig(**LORA, use_dora=True),
    "IA3": peft.IA3Config(task_type="CAUSAL_LM"),
    "LN tuning": peft.LNTuningConfig(task_type="CAUSAL_LM"),
}
# `add_adapter` and `load_adapter` of transformers ask for a PEFT that may be newer than the one that is installed.
IS_INTEGRATED = Version(peft.__version__) >= Version(getattr(integration, "MIN_PEFT_VERSION", "0"))
METHODS = {**MERGEABLE, "prompt": peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5)}


def make(model_class=SleepForCausalLM, **overrides):
    return tiny_model(model_class, torch.float64, **{"initializer_range": 0.2, "sleep_passes": 3, **overrides})


def adapt(config, model=None):
    torch.manual_seed(1)
    return get_peft_model(model or make(), copy.deepcopy(config)).double().eval()


def make_ids(length=21):  # two windows that are slept over, and a rest
    return random_ids(2, length, seed=2)


def train(model, steps=2):
    """The loss before each of some steps on one batch."""
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=3e-2)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = model(input_ids=make_ids(), labels=make_ids()).loss
        loss.backward()
        assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
        optimizer.step()
        losses.append(loss.item())
    return losses


def adapted_modules(model):
    return {name.partition(".lora_A")[0] for name, _ in model.named_parameters() if ".lora_A." in name}


def linear_modules(model, inside=""):
    return {name for name, module in model.named_modules() if type(module) is torch.nn.Linear and inside in name}


def assert_same(logits, expected, atol=1e-9):
    torch.testing.assert_close(logits, expected, atol=atol, rtol=0)


# What is adapted.


@pytest.mark.parametrize("model_class", [SleepForCausalLM, SleepModel])
def test_the_memory_is_adapted_alone(model_class):
    model = make(model_class)
    expected = linear_modules(model, "linear_attn.")
    assert len(expected) == 14  # two layers of seven projections
    assert adapted_modules(adapt(LoraConfig(target_modules=MEMORY), model).base_model.model) == expected
    with pytest.raises(ValueError, match="has no memory to adapt"):
        memory_target_modules(SleepConfig(layer_types=["sleep_attention"] * 4, num_hidden_layers=4))


@pytest.mark.parametrize(
    "method, targets",
    [
        (LoraConfig, {"q_proj", "v_proj"}),
        (peft.IA3Config, {"k_proj", "v_proj", "down_proj"}),
        (peft.LNTuningConfig, {"input_layernorm", "post_attention_layernorm", "norm"}),
        (peft.OFTConfig, {"q_proj", "v_proj"}),
        (peft.VeraConfig, {"q_proj", "v_proj"}),
        (peft.LoHaConfig, {"q_proj", "v_proj"}),
    ],
)
@pytest.mark.parametrize("model_class", [SleepForCausalLM, SleepModel])
def test_methods_find_their_modules(method, targets, model_class):
    base = make(model_class)
    expected = {name for name, _ in base.named_modules() if name.rpartition(".")[2] in targets}
    model = adapt(method(task_type="CAUSAL_LM" if model_class is SleepForCausalLM else "FEATURE_EXTRACTION"), base)
    found = [name for name, p in model.base_model.model.named_parameters() if p.requires_grad]
    assert {module for module in expected if any(name.startswith(f"{module}.") for name in found)} == expected
    assert all(name.startswith(tuple(f"{module}." for module in expected)) for name in found)
    assert model(make_ids())[0].isfinite().all()


def test_registering_is_complete_and_overwrites_nothing(monkeypatch):
    mappings = {name: value for name, value in vars(constants).items() if name.startswith("TRANSFORMERS_MODELS_TO_")}
    known = {name for name, mapping in mappings.items() if "llama" in mapping}
    assert len(known) > 5 and {name for name, mapping in mappings.items() if "sleep" in mapping} == known

    lora = constants.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
    monkeypatch.setitem(lora, "sleep", ["o_proj"])
    register_target_modules()
    assert lora["sleep"] == ["o_proj"]
    monkeypatch.delitem(lora, "sleep")
    monkeypatch.setitem(sys.modules, "peft.utils", None)  # as where PEFT is not installed
    register_target_modules()
    assert "sleep" not in lora
    imports = get_imports(register_target_modules.__code__.co_filename)
    assert "torch" in imports and "peft" not in imports  # so remote code does not ask for PEFT


# What PEFT tells its layers of the whole batch.


MASK = torch.ones(3, 30, dtype=torch.long)
MASK[0, :11] = MASK[2, 3:5] = MASK[2, 20:] = 0  # windows that end at different columns, and rows that end early
LAYERS = dict(task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj", "o_proj"])


def two_adapters(config):
    model = get_peft_model(make(), config, adapter_name="one")
    model.add_adapter("two", config)
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "one" in name or "two" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return model.double().eval()


def text(number):
    return torch.randint(1, 64, (3, 30), generator=torch.Generator().manual_seed(number))


@pytest.mark.parametrize("sleep_passes", [1, 3, Sleep(4, until=0.4)], ids=str)
@pytest.mark.parametrize(
    "config",
    [LoraConfig(**LAYERS), peft.RoadConfig(**LAYERS, group_size=16), peft.GloraConfig(**LAYERS)],
    ids=lambda config: type(config).__name__,
)
@torch.no_grad()
def test_each_row_has_its_adapter_where_rows_sleep_at_different_times(config, sleep_passes):
    model, ids, names = two_adapters(config), text(3), ["one", "two", "one"]
    options = {"sleep_passes": sleep_passes}
    logits = model(ids, attention_mask=MASK, adapter_names=names, **options).logits
    packed = torch.cat([torch.arange(12), torch.arange(18)]).expand(3, -1)
    documents = model(ids, position_ids=packed, adapter_names=names, use_cache=False, **options).logits
    for row, name in enumerate(names):
        model.set_adapter(name)
        is_token = MASK[row].bool()
        assert_same(logits[row][is_token], model(ids[row : row + 1, is_token], **options).logits[0])
        assert_same(documents[row, 12:], model(ids[row : row + 1, 12:], **options).logits[0])
    assert not any(module._forward_pre_hooks for module in model.modules())


@torch.no_grad()
def test_each_row_generates_with_its_adapter():
    model, ids, names = two_adapters(LoraConfig(**LAYERS)), text(3), ["one", "__base__", "two"]
    mask = MASK[:, :20]
    options = dict(max_new_tokens=12, do_sample=False, pad_token_id=0)
    tokens = model.generate(input_ids=ids[:, :20], attention_mask=mask, adapter_names=names, **options)
    for row, name in enumerate(names):
        prompt = ids[row : row + 1, :20][:, mask[row].bool()]
        alone = model.generate(input_ids=prompt, adapter_names=[name], **options)
        assert tokens[row, 20:].equal(alone[0, prompt.shape[1] :])


@torch.no_grad()
def test_each_row_has_its_task_in_poly():
    config = peft.PolyConfig(**LAYERS, n_tasks=3, n_skills=2, r=4)
    model, ids, tasks = get_peft_model(make(), config).double().eval(), text(3), torch.tensor([0, 2, 1])
    for name, parameter in model.named_parameters():
        if "poly" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    logits = model(ids, attention_mask=MASK, task_ids=tasks).logits
    for row in range(3):
        is_token = MASK[row].bool()
        alone = model(ids[row : row + 1, is_token], task_ids=tasks[row : row + 1]).logits[0]
        assert_same(logits[row][is_token], alone)


def test_adapters_that_count_tokens_are_refused():
    config = LoraConfig(**LAYERS, alora_invocation_tokens=[5, 6])
    model, ids = two_adapters(config), text(3)
    ids[:, 25:27] = torch.tensor([5, 6])
    with pytest.raises(ValueError, match="Leave out `alora_invocation_tokens`"):
        model(ids)
    with pytest.raises(ValueError, match="Leave out `alora_invocation_tokens`"):  # also before the first sleep
        model.generate(ids[:, 25:], max_new_tokens=20)


def test_adapters_that_are_weighed_token_by_token_are_refused(tmp_path):
    get_peft_model(make(), LoraConfig(**LAYERS)).save_pretrained(tmp_path)
    model = make(use_cache=False)
    config = peft.XLoraConfig(task_type="CAUSAL_LM", hidden_size=32, adapters={"0": str(tmp_path), "1": str(tmp_path)})
    model = get_peft_model(model, config)
    with pytest.raises(ValueError, match="X-LoRA weighs .* `adapter_names`"):
        model(make_ids())


# Initialisation by activations, gradients and weights.


EVA = LoraConfig(
    task_type="CAUSAL_LM", r=4, target_modules=["q_proj"], init_lora_weights="eva", eva_config=peft.EvaConfig(rho=1.0)
)


def batches(length):
    generator = torch.Generator().manual_seed(4)
    return [{"input_ids": torch.randint(1, 64, (8, length), generator=generator)} for _ in range(4)]


def test_eva_takes_all_that_a_layer_sees():
    model = get_peft_model(make().float(), copy.deepcopy(EVA))
    with pytest.raises(ValueError, match="`prepare_layer_inputs_fn=None`"):
        peft.initialize_lora_eva_weights(model, batches(21), show_progress_bar=False)
    model = get_peft_model(make().float(), copy.deepcopy(EVA))
    peft.initialize_lora_eva_weights(
        model, batches(21), prepare_model_inputs_fn=None, prepare_layer_inputs_fn=None, show_progress_bar=False
    )
    assert_same(model.eval()(make_ids()).logits, make().float()(make_ids()).logits, atol=1e-4)
    # Its directions are those of what the layer sees, awake and asleep: of its variance they hold more than any others
    # would, if less than the best, as EVA looks at one pass after the other and keeps but `r` directions of each.
    layer, seen = model.get_base_model().model.layers[1].linear_attn.q_proj, []
    handle = layer.register_forward_pre_hook(lambda module, args: seen.append(args[0].flatten(0, 1)))
    with torch.no_grad():
        for batch in batches(21):
            model(**batch)
    handle.remove()
    seen = torch.cat(seen)
    assert len(seen) == 4 * 8 * (21 + 2 * 2 * 8)
    seen = seen - seen.mean(0)
    directions = torch.linalg.qr(layer.lora_A["default"].weight.detach().mT).Q
    variances = torch.linalg.svdvals(seen).square()
    best, any_other = variances[:4].sum(), 4 * variances.mean()
    assert directions.shape[1] == 4 and any_other < best / 2
    assert (seen @ directions).square().sum() - any_other > 0.8 * (best - any_other)


@torch.no_grad()
def test_eva_as_ever_within_one_window():
    model = get_peft_model(make().float(), copy.deepcopy(EVA))
    peft.initialize_lora_eva_weights(model, batches(8), show_progress_bar=False)
    with pytest.raises(ValueError, match="texts are equally long"):
        mask = torch.ones(8, 8, dtype=torch.long)
        mask[0, :3] = 0
        padded = [{**batch, "attention_mask": mask} for batch in batches(8)]
        peft.initialize_lora_eva_weights(model, padded, show_progress_bar=False)


@pytest.mark.parametrize("kind", ["corda", "lora_ga", "pissa", "pissa_niter_4", "olora", "orthogonal", "mica"])
def test_initialisations_leave_the_model_as_it_was(kind):
    model, options = make().float(), {}
    expected = model(make_ids()).logits
    if kind == "corda":
        options["corda_config"] = peft.tuners.lora.config.CordaConfig()
    elif kind == "lora_ga":
        options["lora_ga_config"] = peft.LoraGAConfig()
    config = LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=kind, **options)
    if kind == "corda":
        preprocess_corda(
            model, config, run_model=lambda: [model(row[None]) for x in batches(21) for row in x["input_ids"]]
        )
    elif kind == "lora_ga":
        peft.tuners.lora.loraga.preprocess_loraga(
            model, config, train_step=lambda: model(make_ids(), labels=make_ids()).loss.backward()
        )
    model = get_peft_model(model, config).eval()
    assert_same(model(make_ids()).logits, expected, atol=1e-3)
    train(model)
    assert (model(make_ids()).logits - expected).abs().max() > 1e-3


# Every kind of module that we own.


def kinds_of_modules():
    leaves = {}
    for name, module in make(qk_norm=True).named_modules():
        if any(True for _ in module.parameters(recurse=False)) and not any(module.children()):
            leaves[".".join(part for part in name.split(".")[-2:] if not part.isdigit())] = type(module)
    return leaves


@pytest.mark.parametrize("name", kinds_of_modules())
def test_lora_on_every_kind_of_module(name):
    base = make(qk_norm=True)
    is_conv = name.endswith("conv1d")
    config = LoraConfig(
        target_modules=[name],
        r=base.model.layers[1].linear_attn.conv1d.groups if is_conv else 4,
        init_lora_weights=False,
    )
    if issubclass(kinds_of_modules()[name], torch.nn.RMSNorm):
        with pytest.raises(ValueError, match="not supported"):  # by PEFT, whatever the model: LN tuning is for them
            get_peft_model(base, config)
        return
    expected = base(make_ids()).logits
    model = adapt(config, base)
    logits = model(make_ids()).logits
    assert (logits - expected).abs().max() > 1e-3
    past, pieces = None, []
    for token in make_ids().split(1, dim=1):
        output = model(input_ids=token, past_key_values=past)
        past = output.past_key_values
        pieces.append(output.logits)
    assert_same(torch.cat(pieces, dim=1), logits)
    if not is_conv:  # PEFT merges no LoRA of a grouped convolution
        assert_same(model.merge_and_unload()(make_ids()).logits, logits)


@pytest.mark.parametrize("config_class", [peft.LoHaConfig, peft.LoKrConfig])
def test_other_adapters_of_the_convolution_are_merged(config_class):
    model = adapt(config_class(target_modules=["conv1d"], init_weights=False))
    logits = model(make_ids()).logits
    assert (logits - make()(make_ids()).logits).abs().max() > 1e-3
    assert_same(model.merge_and_unload()(make_ids()).logits, logits)


# Training.


def loss_of(logits):
    """In float64; transformers' own is in float32."""
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), make_ids()[:, 1:].flatten())


def gradients(checkpointing=None):
    """The model, its gradients, and how often its first Gated DeltaNet layer has run."""
    model, calls = adapt(METHODS["LoRA"]).train(), []
    if checkpointing is not None:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=checkpointing)
        model.enable_input_require_grads()  # as Trainer does: a reentrant checkpoint needs an input with gradients
    model.get_base_model().model.layers[1].linear_attn.register_forward_hook(lambda *_: calls.append(1))
    loss_of(model(make_ids()).logits).backward()
    return model, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}, len(calls)


def test_all_adapters_are_trained_and_nothing_else():
    """Also the last layer's gate and output, which the last pass of a sleep leaves out."""
    model, found, calls = gradients()
    assert calls == 3 + 3 + 1  # N passes over each window that is slept over
    base = make()
    assert adapted_modules(model.get_base_model()) == linear_modules(base) - {"lm_head"}
    assert linear_modules(base, "linear_attn.") < adapted_modules(model.get_base_model())
    assert found.keys() == {name for name, _ in model.named_parameters() if ".lora_" in name}
    assert all(gradient.isfinite().all() and gradient.any() for gradient in found.values())

    # They are the slope of the loss, in which sleeps have their part.
    direction = {name: torch.randn_like(gradient) for name, gradient in found.items()}
    losses = []
    for step in (1e-5, -1e-5):
        moved = {name: p + step * direction[name] for name, p in model.named_parameters() if name in found}
        losses.append(loss_of(torch.func.functional_call(model, moved, make_ids()).logits))
    slope = sum((found[name] * direction[name]).sum() for name in found)
    torch.testing.assert_close((losses[0] - losses[1]) / 2e-5, slope, rtol=1e-5, atol=0)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_changes_no_gradient(reentrant):
    _, expected, calls = gradients()
    _, found, more_calls = gradients({"use_reentrant": reentrant})
    assert more_calls > calls and found.keys() == expected.keys()
    for name in expected:
        assert_same(found[name], expected[name])


def test_the_loss_by_windows_knows_the_adapter_of_the_head():
    found = []
    for skip_logits in (False, True):
        model = adapt(LoraConfig(**LORA, target_modules=["lm_head", "q_proj"])).train()
        model(input_ids=make_ids(), labels=make_ids(), skip_logits=skip_logits).loss.backward()
        found.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad]))
    assert found[0].any()
    assert_same(*found, atol=1e-7)  # the loss is float32


@torch.no_grad()
def fast_weights(model):
    """S of both layers, after three sleeps, the last of them a nap."""
    cache = model.sleep(model(make_ids()).past_key_values)
    return torch.stack([cache.layers[i].recurrent_states[0] for i in (1, 3)])


def test_adapted_memory_remembers_otherwise():
    base = make()
    expected, logits = fast_weights(base), base(make_ids()).logits
    model = adapt(LoraConfig(task_type="CAUSAL_LM", target_modules=MEMORY), base)
    assert fast_weights(model).equal(expected)  # here B is zero
    train(model)
    assert ((fast_weights(model) - expected).abs().flatten(1).amax(dim=1) > 1e-3).all()
    with model.disable_adapter():
        assert fast_weights(model).equal(expected) and model(make_ids()).logits.equal(logits)


@torch.no_grad()
def read_on(model, ids, num_tokens):
    """Greedy search without a cache."""
    for _ in range(num_tokens):
        logits = model(input_ids=ids, use_cache=False).logits[:, -1:]
        ids = torch.cat([ids, logits.argmax(dim=-1)], dim=1)
    return ids


@pytest.mark.parametrize("method", METHODS)
def test_methods_learn_and_generate_across_windows(method):
    if method == "prompt" and not IS_INTEGRATED:
        pytest.skip("this PEFT does not know what this transformers calls the cache")

    def generate(model, **options):
        return model.generate(make_ids(), max_new_tokens=6, do_sample=False, **options)  # 3 more fill the window

    model = adapt(METHODS[method])
    losses = train(model, steps=4)
    assert losses[-1] < losses[0] - 0.05, losses
    tokens = generate(model)
    assert tokens.equal(read_on(model, make_ids(), 6))
    assert not tokens.equal(generate(make()))  # the adapter is part of it
    assert not tokens.equal(generate(model, sleep_passes=1))  # and so are its sleeps
    if method in MERGEABLE:
        assert generate(model.merge_and_unload()).equal(tokens)


@pytest.mark.parametrize("num_virtual_tokens, num_sleeps", [(3, 2), (4, 3), (8, 3)])  # 2 without any
def test_a_prompt_is_read_first_and_shifts_the_windows(num_virtual_tokens, num_sleeps):
    """
    Virtual tokens are tokens: they fill the first window and are slept over, so that the windows of a text end
    elsewhere than without them, unless there is a multiple of L of them.
    """
    model = adapt(peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=num_virtual_tokens))
    text, sleeps = make().get_input_embeddings()(make_ids()), []
    expected = make()(inputs_embeds=torch.cat([model.get_prompt(batch_size=2), text], dim=1)).logits
    assert_same(model(input_ids=make_ids(), sleep_callback=sleeps.append).logits, expected)
    assert len(sleeps) == num_sleeps


@pytest.mark.skipif(not IS_INTEGRATED, reason="this PEFT does not know what this transformers calls the cache")
def test_prefix_tuning_is_refused():
    """Its keys and values are in the window's cache, which the first sleep empties without having replayed them."""
    config = peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3, num_attention_heads=2, token_dim=16)
    model = adapt(config)
    with pytest.raises(ValueError, match="cannot serve .* Use prompt tuning"):
        model(input_ids=make_ids())
    with pytest.raises(ValueError, match="cannot serve .* Use prompt tuning"):
        model.generate(make_ids(), max_new_tokens=2)


# Merging, saving and loading.


@pytest.mark.parametrize("method", [*MERGEABLE, "DoRA in float32"])
def test_merged_models_are_the_adapted_ones(method):
    base, dtype, atol = make(), torch.float64, 1e-9
    if "float32" in method:  # with weights of the usual size: with larger ones, rounding grows from sleep to sleep
        base, dtype, atol = make(initializer_range=0.02).float(), torch.float32, 1e-5
    logits, weights = base(make_ids()).logits, copy.deepcopy(base.state_dict())
    model = adapt(MERGEABLE[method.partition(" in")[0]], base).to(dtype)
    train(model)
    expected = model(make_ids()).logits
    assert (expected - logits).abs().max() > 1e-2
    merged = copy.deepcopy(model).merge_and_unload()
    assert type(merged) is SleepForCausalLM and merged.state_dict().keys() == weights.keys()
    assert_same(merged(make_ids()).logits, expected, atol)

    unloaded = model.unload()
    assert unloaded(make_ids()).logits.equal(logits)
    assert all(tensor.equal(weights[name]) for name, tensor in unloaded.state_dict().items())


@pytest.mark.parametrize(
    "options",
    [
        dict(modules_to_save=["lm_head"]),
        dict(modules_to_save=["embed_tokens"]),
        dict(target_modules=["embed_tokens", "q_proj"]),
        dict(trainable_token_indices=[5, 6]),
    ],
    ids=["head", "embeddings", "LoRA of embeddings", "single tokens"],
)
def test_embeddings_and_head_are_trained_and_saved(options, tmp_path):
    base = make()
    base.save_pretrained(tmp_path / "base")
    logits = base(make_ids()).logits
    model = adapt(LoraConfig(**LORA, **options), base)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    train(model)
    moved = {name for name, p in model.named_parameters() if not p.equal(before[name])}
    assert moved == {name for name, p in model.named_parameters() if p.requires_grad}
    assert any("embed_tokens" in name or "lm_head" in name for name in moved)
    model.save_pretrained(tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(SleepForCausalLM.from_pretrained(tmp_path / "base"), tmp_path / "adapter")
    assert_same(loaded.eval()(make_ids()).logits, model(make_ids()).logits)
    with model.disable_adapter():
        assert model(make_ids()).logits.equal(logits)


@pytest.mark.skipif(not IS_INTEGRATED, reason="transformers asks for a newer PEFT")
def test_the_integration_of_transformers(tmp_path):
    make().save_pretrained(tmp_path / "base")
    model = SleepForCausalLM.from_pretrained(tmp_path / "base")
    logits = model(make_ids()).logits
    model.add_adapter(LoraConfig(**LORA))
    expected = model(make_ids()).logits
    assert (expected - logits).abs().max() > 1e-2
    model.save_pretrained(tmp_path / "adapter")
    assert not (tmp_path / "adapter" / "model.safetensors").exists()

    loaded = SleepForCausalLM.from_pretrained(tmp_path / "base")
    loaded.load_adapter(tmp_path / "adapter")
    assert_same(loaded(make_ids()).logits, expected)
    loaded.disable_adapters()
    assert_same(loaded(make_ids()).logits, logits)
    assert_same(AutoModelForCausalLM.from_pretrained(tmp_path / "adapter")(make_ids()).logits, expected)


WITHOUT_THE_PACKAGE = """
import sys
folder, *is_integrated = sys.argv[1:]

import torch
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

def load():
    return AutoModelForCausalLM.from_pretrained(folder + "/base", trust_remote_code=True)

models = {
    "PeftModel": PeftModel.from_pretrained(load(), folder + "/adapter"),
    "AutoPeftModel": AutoPeftModelForCausalLM.from_pretrained(folder + "/adapter", trust_remote_code=True),
}
if is_integrated:
    models["load_adapter"] = load()
    models["load_adapter"].load_adapter(folder + "/adapter")
assert type(load()).__module__.startswith("transformers_modules.")
assert get_peft_model(load(), LoraConfig()).peft_config["default"].target_modules == {"q_proj", "v_proj"}

ids = load_file(folder + "/ids.safetensors")["ids"]
with torch.no_grad():
    save_file({name: model.eval()(ids).logits for name, model in models.items()}, folder + "/outputs.safetensors")
"""


@pytest.mark.programs
def test_an_adapter_works_on_remote_code(tmp_path):
    make().save_pretrained(tmp_path / "base")
    save_file({"ids": make_ids()}, tmp_path / "ids.safetensors")
    model = adapt(METHODS["LoRA"], SleepForCausalLM.from_pretrained(tmp_path / "base"))
    train(model)
    model.save_pretrained(tmp_path / "adapter")
    clean_room.run(WITHOUT_THE_PACKAGE, tmp_path, *["integrated"] * IS_INTEGRATED)
    found = load_file(tmp_path / "outputs.safetensors")
    assert len(found) == 2 + IS_INTEGRATED
    for logits in found.values():
        assert_same(logits, model(make_ids()).logits)
