"""Many trials as one program: networks of one architecture, their weights stacked, trained at once.

    reason = can_train_together(trees)                      agreement.py: from the configs alone, without torch
    outcome = train_together(trees, builder, runtime)       trials.py: probe the ways, train, evaluate, unstack

stack.py holds the tensors of T networks as (T, ...); forward.py computes all their logits, through `torch.func.vmap` or
through stacked layers (layers.py); update.py is the optimizers' rules with a coefficient per trial; batches.py gives
each trial the batches that its own seed orders; together.py puts a step together; one_by_one.py is the ordinary loop,
trial after trial, which the probe falls back on. Each trial starts like its twin trained alone and drifts from it by
rounding only: identity is not claimed, except for the ordinary loop.

Letters: T trials, S steps, B examples of a batch, K classes, C channels, H rows, W columns, F features.
"""
