"""The contents of an output folder: evidence, claims and verdicts, tables and their digests."""
