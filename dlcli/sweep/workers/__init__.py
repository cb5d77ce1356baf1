"""Processes that ask the ledger for trials and train them, here, on Slurm or on Ray; and who watches over them."""
