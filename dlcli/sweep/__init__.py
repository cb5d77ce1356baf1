"""Searches: many trials of an experiment, of which none is lost.

    asking.py       the words of a command -> a checked definition.py: space.py, objectives, sampler, pruner
    ledger/         who may train what: claims, an Optuna storage that outlives its writers, samplers
    workers/        processes that ask the ledger for trials, train them, and are watched over, here or on a cluster
    showing/        what becomes of the trials: live table, lines, reports, pictures
    record.py       what is known of a trial, in its folder: the truth that all others are rebuilt from
    running.py      what the commands call; dry_run.py, applying.py

Letters and words: a trial is one run of a sweep; an axis is a setting or group of several values; a point has one text
per axis that applies.
"""
