"""Yardsticks of others for models that sleep: `python -m examples.yardsticks.NAME`, see docs/YARDSTICKS.md."""
