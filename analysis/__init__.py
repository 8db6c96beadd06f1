"""Experiments: from configurations to runs, from runs to tidy tables."""
