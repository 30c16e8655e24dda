"""`SleepConfig` and the presets. Installed as `modeling_sleep.configuration`."""

from .configuration_sleep import SleepConfig


__all__ = ["SleepConfig"]
