"""The tasks by name."""

from tasks.depo import Depo
from tasks.gsm import Gsm
from tasks.gsm_symbolic import GsmSymbolic
from tasks.recall import Recall
from tasks.rule110 import Rule110
from tasks.task import Example, Task, TaskStream, WindowCollator, make_dataset, make_stream


TASKS: dict[str, type[Task]] = {task.name: task for task in (Rule110, Depo, Recall, Gsm, GsmSymbolic)}
