"""What the script runs: each module computes tidy tables, judges claims and is drawn by its namesake in figures/."""
