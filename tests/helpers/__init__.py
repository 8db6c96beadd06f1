"""What the tests share: made-up data, runs and folders, and tools to compare and run with.

The tools are oracles that do without the core, the script, and a browser.
"""
