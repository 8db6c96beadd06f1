"""Shared parts of experiments: context, figure 3's runs, learning curves, points of training."""
