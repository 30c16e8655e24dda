"""What wake, sleep and training cost, as ratios measured within one run. `run.py` is the command."""
