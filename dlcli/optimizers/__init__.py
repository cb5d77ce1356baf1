"""Learning-rate schedules and parameter groups; the optimizers themselves come from `torch.optim`."""
