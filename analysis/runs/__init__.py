"""Training runs as files: their keys, how they are kept, trained and evaluated, and the workers."""
