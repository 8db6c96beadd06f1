"""Experiments: each module computes tidy tables and evidence; its namesake in figures/ draws it."""
