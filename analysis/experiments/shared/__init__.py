"""What experiments share: their context, figure 3's runs, learning curves and points along
training."""
