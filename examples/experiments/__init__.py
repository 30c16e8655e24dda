"""Recipes, tasks, training, evaluation, grids, reports and benchmarks: `python -m examples.experiments.train`."""
