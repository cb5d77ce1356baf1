"""From a checkpoint to use: a trained network, its predictions, its explanations."""
