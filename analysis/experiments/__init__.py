"""What the script runs: each module computes tidy tables and evidence, and is drawn by its namesake
in figures/."""
