"""Measurements of speed and memory: never tests, never gates. Their figures go into experiments/README.md."""
