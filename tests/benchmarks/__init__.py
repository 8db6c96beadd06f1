"""Benchmarks, run by hand, never by the test suite: `python -m tests.benchmarks` prints them all as
tables in Markdown.

Ours and what one would write first with torch.nn and torch.optim take turns in every round, and
ratios are taken round by round, since machines are noisy.
"""
