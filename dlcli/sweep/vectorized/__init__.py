"""Trains many trials as one program: networks of one architecture, with stacked weights, trained at once.

    reason = can_train_together(trees)                      agreement.py: decides by the configs alone, without torch
    outcome = train_together(trees, builder, runtime)       trials.py: probe the ways, train, evaluate, unstack

stack.py holds the tensors of T networks as (T, ...); forward.py computes all their logits, through `torch.func.vmap` or
through stacked layers (layers.py); update.py has the optimizers' rules with a coefficient per trial; batches.py gives
each trial the batches in the order of its own seed; together.py makes a step of these parts; one_by_one.py is the
ordinary loop, trial after trial, which the probe falls back on. Each trial starts like the same trial trained alone and
drifts from it only by rounding. Only the ordinary loop gives identical results.

Letters: T trials, S steps, B examples of a batch, K classes, C channels, H rows, W columns, F features.
"""
