"""Training runs as files: what decides a run, how it is kept, advanced and evaluated, and the
workers that do it."""
