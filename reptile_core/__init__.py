"""A minimal Reptile core: tasks, networks, inner loop, update directions, meta-training, evaluation."""
