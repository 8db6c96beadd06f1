"""What the tests share: made-up data, runs and folders, oracles that do without the core, the
script, a browser."""
