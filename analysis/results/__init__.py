"""What an output folder holds: evidence, claims and their verdicts, tables and their digests."""
