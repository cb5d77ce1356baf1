"""Who may train what: claims, the Optuna storage behind them, the dead and the lost, samplers and pruners."""
