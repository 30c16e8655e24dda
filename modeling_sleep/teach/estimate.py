"""What teaching a model will take, told from its configuration, before any weights are there.

    python -m modeling_sleep.teach meta-llama/Llama-3.2-1B-Instruct --output remembers --estimate

A matrix of P entries takes 2 P operations for each token that it reads, and as many again for each of what is
differentiated: its input, its weights. Those of the layers are counted, and of the head where it is asked; attention
within a window is little beside them. Lessons are drawn as teaching draws them, the first few of them.
"""

import dataclasses

import torch
from torch import nn

from ..heads_sleep import SleepForCausalLM
from .chat import Chat
from .everyday import ANSWER
from .facts import unit
from .reading import LEAD
from .stages import KEPT_TOKENS, PLAIN_TOKENS, TEXT_TOKENS, Stage
from .teaching import AMID, CUT, check, rank_to_cut_to


SAMPLED = 40  # lessons
WRITTEN = 0.3  # of a story's tokens, as far as keys are computed for them: a fifth to a third in SmolLM2's teaching


@dataclasses.dataclass(frozen=True)
class Estimate:
    """
    What teaching takes.

    Parameters
    ----------
    parameters, kept : int
        Of the memory, all that learns, and those that are left once its keys are cut.
    memory : int
        Bytes of S, for each text.
    cache : float
        Bytes on disk of what frozen layers know of the lessons.
    reading, alone, through : float
        Operations of reading, and of the two stages.
    """

    parameters: int
    kept: int
    memory: int
    cache: float
    reading: float
    alone: float
    through: float

    @property
    def hours(self) -> str:
        """All operations in hours, by how many a device really does in a second."""
        total = self.reading + self.alone + self.through
        speeds = (("100 GFLOP/s", 1e11), ("1 TFLOP/s", 1e12), ("50 TFLOP/s", 5e13))
        return ", ".join(f"{total / speed / 3600:.2g} h at {name}" for name, speed in speeds)

    def __str__(self) -> str:
        return (
            f"memory: {self.kept / 1e6:.1f} M parameters (of {self.parameters / 1e6:.1f} before keys are cut), "
            f"{self.memory / 1e6:.1f} MB of S for each text\n"
            f"lessons on disk: {self.cache / 1e9:.1f} GB (--cache-gigabytes)\n"
            f"operations: {self.reading / 1e12:.0f} TFLOP to read, {self.alone / 1e12:.0f} for the memory alone, "
            f"{self.through / 1e12:.0f} through the layers behind it: {self.hours}"
        )


def estimate(
    model: SleepForCausalLM,
    chat: Chat,
    alone: Stage,
    through: Stage,
    units: int,
    key_rank: int | None = None,
    alone_units: int = 0,
) -> Estimate:
    """
    What [`teach`] takes for a model that has a recall memory; weights are not looked at.

    Parameters
    ----------
    model : SleepForCausalLM
        On any device, "meta" included.
    chat : Chat
    alone, through : Stage
    units, key_rank, alone_units : int
        As in [`teach`].

    Raises
    ------
    ValueError
        If the model cannot be taught, as [`teach`] would say.
    """
    config, place = model.config, check(model, chat.tokenizer)
    below, behind = (matrices(model.model.layers[part]) for part in (slice(place), slice(place + 1, None)))
    keyed = matrices(model.model.layers[: place if config.recall_key_layer is None else config.recall_key_layer])
    memory, head = model.model.layers[place], matrices([model.lm_head])
    L, kept = config.window_size, config.window_overlap + config.pinned_tokens
    drawn = [unit("train", 0, i, chat, L, amid=AMID, cut=i < CUT * SAMPLED) for i in range(SAMPLED)]
    answers = [len(x.answers["own"].ids) for lesson in drawn for x in lesson.questions]
    texts = [len(x.prompt) + len(x.answers["own"].ids) for lesson in drawn for x in lesson.questions]
    # Of a lesson: tokens of its story, questions, their tokens and windows; of an answer its tokens.
    told, asked, answer = L * len(drawn[0].story), len(texts) / SAMPLED, sum(answers) / len(answers)
    tokens, windows = sum(texts) / SAMPLED, sum(-(-text // L) for text in texts) / SAMPLED

    kinds = set(config.layer_types[place + 1 :])
    keys = 0  # entries of keys and values behind the memory, for each token
    if kinds == {"sleep_attention"}:
        keys = 2 * (len(config.layer_types) - place - 1) * config.num_key_value_heads * config.head_dim
    states = 1 if config.recall_key_layer is None else 2  # of a token that asks, before the memory
    entries = (told + states * tokens) * config.hidden_size
    entries += tokens * (config.hidden_size + keys) + windows * kept * keys

    rank, cut = rank_to_cut_to(memory, key_rank), 0
    for whole in (memory.q_proj, memory.k_proj) if rank else ():
        cut += whole.in_features * whole.out_features - rank * (whole.in_features + whole.out_features)

    def writing(stage: Stage, cut: int) -> float:
        return 6 * WRITTEN * (matrices([memory]) - cut) * stage.stories * sum(stage.windows) / 2 * L

    asked, text = through.stories * min(through.questions, asked), TEXT_TOKENS / 2  # in a step; text in every other
    plain = through.stories if through.everyday else 0
    behind_through = behind * (asked * (LEAD + answer) + plain * (LEAD + ANSWER) + text)
    head_through = head * (asked * (answer + KEPT_TOKENS) + plain * PLAIN_TOKENS + text)
    return Estimate(
        parameters=(parameters := sum(p.numel() for p in memory.parameters())),
        kept=parameters - cut,
        memory=4 * config.recall_key_dim * config.recall_value_dim,
        cache=2 * (units * entries + alone_units * (told + tokens) * config.hidden_size),
        reading=2 * ((below + behind) * units + keyed * alone_units) * (told + tokens),
        alone=alone.steps * writing(alone, 0),
        through=through.steps * (writing(through, cut) + 4 * (behind_through + head_through)),
    )


def matrices(modules: nn.ModuleList | list[nn.Module]) -> int:
    """Entries of all matrices that tokens go through."""
    return sum(x.weight.numel() for module in modules for x in module.modules() if isinstance(x, nn.Linear))


def on_meta(config) -> SleepForCausalLM:
    """A model without weights."""
    with torch.device("meta"):
        return SleepForCausalLM(config)
