"""Several seeds as one experiment: the runs, their mean and spread, and how they are shown."""
