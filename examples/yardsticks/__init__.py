"""Yardsticks of others, held against models that sleep: `python -m examples.yardsticks.NAME`, see docs/YARDSTICKS.md."""
