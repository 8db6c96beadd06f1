"""Benchmarks, run by hand and never by the test suite.

`python -m tests.benchmarks` prints those that need no GPU, except for `hessian_products`, as tables
in Markdown.

Our code takes turns in every round with what one would write first with torch.nn and torch.optim.
Ratios are taken round by round, since machines are noisy.
"""
