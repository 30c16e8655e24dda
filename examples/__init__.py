"""Programs to copy; and `experiments`, the package that made docs/RESULTS.md."""
