"""The tasks by name."""

from .depo import Depo
from .gsm import Gsm
from .gsm_symbolic import GsmSymbolic
from .paths import Paths
from .recall import Recall
from .rule110 import Rule110
from .task import Example, Task, TaskStream, WindowCollator, make_dataset, make_stream


TASKS: dict[str, type[Task]] = {task.name: task for task in (Rule110, Depo, Paths, Recall, Gsm, GsmSymbolic)}
