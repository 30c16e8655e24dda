"""A recipe is a preset of a model with a task, training and evaluation: one variant of it, with overrides.

    recipe = load_recipe("rule110-mini", "N=4", ["training.max_steps=100"])

The model is that of `configuration/presets/`; the rest is a file of the same name in `recipes/`, which also lists the
variants, the runs of an experiment: one model per N, one model for any N, and the controls. Each says what it changes
in the sections `model`, `task`, `training` and `evaluation`, and which other variant it is `like`, if any.
"""

import copy
import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassError

from modeling_sleep import Sleep, SleepConfig

from .tasks import TASKS, Task


RECIPES = Path(__file__).parent / "recipes"
SECTIONS = ("model", "task", "training", "evaluation")
TRAIN = f"{__package__}.train"


def ramp(step: int, max_steps: int, share: float, maximum: int, minimum: int = 1) -> int:
    """Rise evenly from `minimum` at the first step to `maximum` after a share of the run."""
    progress = min(1.0, step / (share * max_steps)) if share > 0 else 1.0
    return minimum + int(progress * (maximum - minimum))


def draw_passes(step: int, seed: int, passes: Sequence[int]) -> int:
    """N of a training step, drawn from `passes`. A double is drawn twice as often."""
    return passes[np.random.default_rng([seed, step]).integers(len(passes))]


@strict
@dataclasses.dataclass(kw_only=True)
class Phase:
    """
    A part of a training, which lasts until the next one begins.

    Parameters
    ----------
    begin : float
        Share of the run at which it begins.
    passes : list[int]
        N is drawn from these, as from those of the whole training.
    lr_scale : float
        What the learning rates are multiplied by.
    depth_by_passes : bool
        Whether a step with N passes is only asked for depths of up to N, so that few passes are not pressed for what
        is meant to take more of them.
    write_dropout : float
        What passes asleep leave unwritten (see [`Sleep`]), in steps with passes to spare: with at least twice as many
        as the task's largest depth, so that what is asked can be answered all the same.
    """

    begin: float | int
    passes: list[int]
    lr_scale: float | int = 1.0
    depth_by_passes: bool = False
    write_dropout: float | int = 0.0

    def validate_ranges(self):
        _check_passes(self.passes)
        _check_between(self, 0, 0.99, "write_dropout")
        _check_between(self, 0, 1, "begin")
        _check_between(self, 0, math.inf, "lr_scale")


@strict
@dataclasses.dataclass(kw_only=True)
class Training:
    """
    How a model is trained.

    Parameters
    ----------
    passes : list[int]
        N is drawn from these, anew for every step; a value that is there twice is drawn twice as often. If it is one
        value, the trained model sleeps with that N unless told otherwise, whatever `model.sleep_passes` says.
        With `phases`, these are all that N is ever drawn from.
    phases : list[Phase]
        Parts of the run that draw N differently and have a learning rate of their own, the first from 0 on.
    batch_size : int
        Examples per step, over all processes.
    max_steps : int
        Optimizer steps.
    depth_ramp : float
        Share of the run along which the task's largest depth rises from its shallowest to its maximum.
    passes_ramp : float
        Share of the run along which the largest N allowed rises from 1 to the largest of `passes`.
    optimizer : str
        `"muon"`: Muon for the hidden matrices, AdamW for everything else; `"adamw"`: AdamW for all.
    lr_muon, lr_adamw : float
        Learning rates of Muon and of AdamW.
    weight_decay : float
    adjust_lr : str
        Muon's scaling of its updates, `"original"` or `"match_rms_adamw"`.
    lr_schedule : str
        After the warm-up, a name of [`transformers.get_scheduler`].
    warmup_steps : int
    lr_decay : float
        Share of the run, at its end, along which the learning rate falls; for `"warmup_stable_decay"` alone.
    max_grad_norm : float
    amnesia : bool
        The control that zeroes the fast weights, too, at the end of a window.
    """

    passes: list[int]
    batch_size: int
    max_steps: int
    phases: list[Phase] = dataclasses.field(default_factory=list)
    depth_ramp: float | int = 0.0
    passes_ramp: float | int = 0.0
    optimizer: Literal["muon", "adamw"] = "muon"
    lr_muon: float | int = 2e-3
    lr_adamw: float | int = 1e-3
    weight_decay: float | int = 0.1
    adjust_lr: Literal["original", "match_rms_adamw"] = "match_rms_adamw"
    lr_schedule: str = "cosine"
    warmup_steps: int = 100
    lr_decay: float | int = 0.0
    max_grad_norm: float | int = 1.0
    amnesia: bool = False

    def validate_ranges(self):
        _check_passes(self.passes)
        _check_between(self, 1, math.inf, "batch_size", "max_steps")
        _check_between(self, 0, math.inf, "warmup_steps", "lr_muon", "lr_adamw", "weight_decay", "max_grad_norm")
        _check_between(self, 0, 1, "depth_ramp", "passes_ramp")

    def validate_lr_decay(self):
        if (self.lr_decay > 0) != (self.lr_schedule == "warmup_stable_decay") or not 0 <= self.lr_decay <= 1:
            raise ValueError(
                f"lr_decay must be in (0, 1] with lr_schedule 'warmup_stable_decay' and 0 with any other, "
                f"got {self.lr_decay} with {self.lr_schedule!r}"
            )

    def validate_phases(self):
        if not self.phases:
            return
        begins = [phase.begin for phase in self.phases]
        if begins[0] != 0 or begins != sorted(set(begins)):
            raise ValueError(f"phases must begin at 0, and each after the one before, got {begins}")
        drawn = {n for phase in self.phases for n in phase.passes}
        if set(self.passes) != drawn:
            raise ValueError(f"passes must be all that the phases draw N from, {sorted(drawn)}, got {self.passes}")

    def phase_at(self, step: int) -> Phase:
        """The phase of a step; a training without any is one."""
        phases = self.phases or [Phase(begin=0, passes=self.passes)]
        return [phase for phase in phases if round(phase.begin * self.max_steps) <= step][-1]

    def passes_at(self, step: int, seed: int) -> int:
        """N of a step, drawn from those allowed."""
        return draw_passes(step, seed, self.allowed_passes(step))

    def sleep_at(self, step: int, seed: int, max_depth: int) -> Sleep:
        """How a step sleeps, whose deepest question is of `max_depth`."""
        passes = self.passes_at(step, seed)
        has_to_spare = passes >= 2 * max_depth
        return Sleep(passes, write_dropout=self.phase_at(step).write_dropout if has_to_spare else 0.0)

    def deepest_asked(self, step: int, seed: int) -> int | None:
        """The deepest question that has a label in a step. None: all have."""
        return self.passes_at(step, seed) if self.phase_at(step).depth_by_passes else None

    def allowed_passes(self, step: int) -> list[int]:
        """What N is drawn from in a step: those of its phase, but for what the curriculum has not come to yet."""
        passes = self.phase_at(step).passes
        largest = ramp(step, self.max_steps, self.passes_ramp, max(self.passes))
        return [n for n in passes if n <= largest] or [min(passes)]


@strict
@dataclasses.dataclass(kw_only=True)
class Evaluation:
    """
    What a trained model is asked.

    Parameters
    ----------
    passes : list[int]
        Every N that the questions are answered with.
    depths : list[int]
        Every depth of the questions.
    num_examples : int
        Examples per depth, the same for every N.
    batch_size : int
        Examples per forward pass.
    """

    passes: list[int]
    depths: list[int]
    num_examples: int = 1000
    batch_size: int = 250

    def validate_ranges(self):
        _check_passes(self.passes)
        _check_between(self, 1, math.inf, "num_examples", "batch_size")

    def check(self, task: Task, config: SleepConfig):
        """
        Ask a question of every depth, now rather than after the training.

        Raises
        ------
        ValueError
            If the task has none, or the model cannot sleep as long as it is to.
        """
        collate = task.collator()
        for depth in self.depths:
            collate(task.examples([0], split="eval", depth=depth))
        _check_can_sleep("evaluation", self.passes, config)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """One variant of a preset. `settings` is all of it as plain data: what the variant is compared and resumed by."""

    preset: str
    variant: str | None
    description: str
    config: SleepConfig
    task: Task
    training: Training
    evaluation: Evaluation
    settings: dict[str, dict[str, Any]]


def list_recipes() -> list[str]:
    """The recipes there are."""
    return sorted(path.stem for path in RECIPES.glob("*.json"))


def read_recipe(preset: str) -> dict[str, Any]:
    """The preset of a model, and what its recipe adds: all sections, and the variants."""
    data = SleepConfig.load_preset(preset)
    if preset not in list_recipes():
        known = ", ".join(list_recipes())
        raise ValueError(f"preset {preset!r} is a model without a recipe; there are recipes of {known}")
    return data | json.loads((RECIPES / f"{preset}.json").read_text(encoding="utf-8"))


def list_variants(preset: str) -> list[str]:
    """The variants of a recipe, in its order."""
    return list(read_recipe(preset).get("variants", {}))


def load_recipe(preset: str, variant: str | None = None, overrides: Sequence[str] = ()) -> Recipe:
    """
    Read a recipe.

    Parameters
    ----------
    preset : str
        Name of a file in `recipes/`, and of its model in `configuration/presets/`.
    variant : str, optional
        One of its variants.
    overrides : sequence of str
        Like `training.max_steps=100`; values are JSON, or else text.

    Raises
    ------
    ValueError
        If there is no such recipe, or a variant, section or setting is unknown or impossible.
    """
    data = read_recipe(preset)
    settings = {section: copy.deepcopy(data[section]) for section in SECTIONS}
    variants = data.get("variants", {})
    if variant is not None:
        for name in _ancestors(preset, variants, variant):
            for section, changes in variants[name].items():
                if section not in ("description", "like"):
                    _section(settings, section).update(changes)
    for override in overrides:
        name, equals, value = override.partition("=")
        section, dot, key = name.partition(".")
        if not equals or not dot:
            raise ValueError(f"an override looks like training.max_steps=100, not {override!r}")
        _section(settings, section)[key] = _parse(value)

    task = build_task(settings["task"])
    _check_names(settings["model"], SleepConfig, "model")
    tokenizer = task.tokenizer()
    settings["model"].update(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id)  # overrides may change it
    config = SleepConfig(**settings["model"])
    training = _build_training(settings["training"])
    if len(set(training.passes)) == 1:
        config.sleep_passes = training.passes[0]
    evaluation = _build(Evaluation, settings["evaluation"], "evaluation")
    _check_can_sleep("training", training.passes, config)
    evaluation.check(task, config)
    if config.window_size % task.window_size:
        raise ValueError(
            f"the model's windows of {config.window_size} tokens do not hold a whole number of the task's, which have "
            f"{task.window_size}: change model.window_size or the task"
        )
    return Recipe(
        preset=preset,
        variant=variant,
        description=variants.get(variant, {}).get("description", data["description"]),
        config=config,
        task=task,
        training=training,
        evaluation=evaluation,
        settings=settings,
    )


def _ancestors(preset: str, variants: dict[str, dict], variant: str) -> list[str]:
    """A variant behind those that it is like: the first is like no other."""
    if variant not in variants:
        raise ValueError(f"preset {preset!r} has no variant {variant!r}; it has {', '.join(variants) or 'none'}")
    other = variants[variant].get("like")
    return [*(_ancestors(preset, variants, other) if other else []), variant]


def build_task(settings: dict[str, Any]) -> Task:
    """The task of a recipe's section, or of a run's: its name, and its fields."""
    settings = dict(settings)
    name = settings.pop("name", None)
    if name not in TASKS:
        raise ValueError(f"the task's name must be one of {', '.join(TASKS)}, got {name!r}")
    return _build(TASKS[name], settings, "task")


def what_differs(run: dict, other: dict) -> list[str]:
    """Which entries of `run`, such as the sections of a recipe, another run's record lacks or has otherwise."""
    return [name for name, value in run.items() if other.get(name) != value]


def has_results(output: Path, run: dict) -> bool:
    """Whether the folder of a run holds the results of just this one, as `what_differs` compares them."""
    results = output / "results.json"
    return results.exists() and not what_differs(run, json.loads(results.read_text(encoding="utf-8")))


def train_command(
    preset: str, variant: str | None, seed: int, output: Path | str, overrides: Sequence[str]
) -> list[str]:
    """The command line of a run, behind `python`."""
    words = ["-m", TRAIN, preset, *(["--variant", variant] if variant else [])]
    words += ["--seed", str(seed), "--output", str(output)]
    return words + [word for override in overrides for word in ("--set", override)]


def _check_passes(passes: list[int]):
    if not passes or min(passes) < 1:
        raise ValueError(f"passes must be some N of at least 1, got {passes}")


def _check_between(settings: Any, least: float, most: float, *names: str):
    for name in names:
        if not least <= getattr(settings, name) <= most:
            bound = f"at least {least}" if most == math.inf else f"from {least} to {most}"
            raise ValueError(f"{name} must be {bound}, got {getattr(settings, name)}")


def _check_can_sleep(section: str, passes: Sequence[int], config: SleepConfig):
    if max(passes) > 1 and "linear_attention" not in config.layer_types:
        raise ValueError(
            f"{section}.passes must be [1], as attention layers alone have nothing to sleep for: {passes}"
        )


def write_at_once(path: Path, text: str):
    """Write a file whole, or not at all: a process that is stopped leaves no half of it."""
    fresh = path.with_suffix(".tmp")
    fresh.write_text(text, encoding="utf-8")
    fresh.replace(path)


def _section(settings: dict, name: str) -> dict:
    if name not in settings:
        raise ValueError(f"a recipe has the sections {', '.join(SECTIONS)}, not {name!r}")
    return settings[name]


def _parse(value: str) -> Any:
    try:
        return json.loads(value)
    except json.JSONDecodeError:
        return value


def _build_training(settings: dict) -> Training:
    phases = settings.get("phases", [])
    if not isinstance(phases, list) or not all(isinstance(phase, dict) for phase in phases):
        raise ValueError(f'training.phases must be a list like [{{"begin": 0, "passes": [4]}}], got {phases!r}')
    phases = [_build(Phase, phase, f"training.phases[{i}]") for i, phase in enumerate(phases)]
    return _build(Training, settings | {"phases": phases}, "training")


def _build(cls, settings: dict, section: str):
    _check_names(settings, cls, section)
    try:
        return cls(**settings)
    except (TypeError, StrictDataclassError) as error:
        raise ValueError(f"section {section!r}: {error}") from error


def _check_names(settings: dict, cls, section: str):
    names = [field.name for field in dataclasses.fields(cls) if field.init]
    if unknown := sorted(set(settings) - set(names)):
        raise ValueError(f"section {section!r} has no {', '.join(unknown)}; it knows {', '.join(sorted(names))}")
