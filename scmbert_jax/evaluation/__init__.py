"""Metrics, baselines, splits, suites and the report."""
