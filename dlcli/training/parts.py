"""Builds the parts of a training from its config, in order: runtime, data, task, optimizers, and the rest."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import repeat
from typing import Any

from torch import Tensor

from dlcli.datasets.kinds import check_size, kind_of
from dlcli.runs.checkpoint import Checkpoint
from dlcli.runtime.device import Runtime, memory_faults, start_runtime
from dlcli.runtime.random import seed_everything
from dlcli.runtime.ranks import Ranks, SingleProcess
from dlcli.runtime.signals import Signals
from dlcli.tasks.task import Task
from dlcli.training import build, checks, loop
from dlcli.training.allow_list import Builder
from dlcli.training.autotune import Timer, choose
from dlcli.training.state import check_weights


class Assembly:
    """Build the live objects of a training. Mistakes are reported before data are read, if possible.

    resume_from: the checkpoint whose weights must fit and whose choices are reused. teacher: model node and weights of
    the network to learn from, if the task has one.
    """

    def __init__(
        self,
        tree: dict[str, Any],
        signals: Signals,
        *,
        builder: Builder,
        resume_from: Checkpoint | None = None,
        teacher: tuple[dict[str, Any], dict[str, Tensor]] | None = None,
        ranks: SingleProcess | Ranks = loop.SINGLE_PROCESS,
    ):
        self.tree, self.signals, self.builder, self.ranks = tree, signals, builder, ranks
        stored = resume_from.manifest if resume_from else None
        self.teacher = stored.teacher if stored else (teacher[0] if teacher else None)
        environment = stored.environment if stored else None
        self.runtime = start_runtime(tree["runtime"], stored=environment, local_rank=ranks.local_rank)
        builder.check(tree, written_by=stored.dlcli if stored else None)
        check_size(tree["dataset"])  # the shapes tried later may be smaller, or none are tried
        rebuild = partial(build.build_meta_task, builder, teacher=self.teacher)
        meta = rebuild(tree)
        is_tried = resume_from is None or kind_of(tree["dataset"]).is_one_image or checks.needs_measure(tree)
        self.activations = checks.check_shapes(meta, tree, rebuild) if is_tried else 0.0
        checks.check_parameter_groups(meta, tree)
        if resume_from:
            check_weights(meta, resume_from.weights, resume_from.folder)
        signals.raise_if_received()
        if tree["runtime"].get("parallel") == "tp":  # all ranks see the same batches
            self.ranks = build.split_ranks(ranks)
        with memory_faults(self.memory_remedy):
            self._build_sources(share_evaluation=loop.has_mean_scores(meta))
            self._build_task(teacher[1] if teacher else None, is_fresh=resume_from is None)
        self.environment = self.runtime.fingerprint() | {"devices": ranks.world_size}

    def _build_sources(self, *, share_evaluation: bool) -> None:
        device, share = self.runtime.device, (self.ranks.data_rank, self.ranks.num_data_ranks)
        self.data = build.build_data(self.builder, self.tree)
        checks.check_data(self.data, self.tree)
        train, val_examples, val = build.split_training(self.tree, self.data)
        small = checks.small_splits(self.tree["dataset"], {"validation": len(val), "test": len(self.data.test)})
        self.data = replace(self.data, notes=(*self.data.notes, *small))
        self.train_source, self.source_reason = build.build_train_source(
            self.builder, self.tree, self.data.train, train, device, share=share
        )
        held_out = share if share_evaluation else (0, 1)
        self.val_source, self.test_source = (
            build.build_eval_source(self.tree, examples, rows, device, share=held_out, activations=self.activations)
            for examples, rows in ((val_examples, val), (self.data.test, None))
        )

    def _build_task(self, teacher_weights: dict[str, Tensor] | None, *, is_fresh: bool) -> None:
        seed_everything(self.tree["seed"])
        self.task = build.build_task(
            self.builder, self.tree, teacher=self.teacher
        )  # on the CPU: the same weights on every device
        self.runtime_reason, self.pretrained = "", ""
        if is_fresh:
            if teacher_weights is not None:
                self.task.get_submodule("teacher").load_state_dict(teacher_weights)
            build.prepare_networks(self.task, self.tree, self.data)
            if self.tree["trainer"].get("pretrained"):
                from dlcli.training.pretrained import load_pretrained

                self.pretrained = load_pretrained(self.task, self.tree)
            self._choose_runtime()
        self.runtime.place(self.task)
        self._spread()
        per_epoch = self.train_source.steps_per_epoch
        self.optimizers = build.build_optimizers(self.builder, self.tree, self.task, self.runtime, per_epoch)
        self.averages = build.build_averages(self.tree, self.task)
        self.schedule = build.build_schedule(self.builder, self.tree)
        self.penalties = build.build_penalties(self.tree, self.task)
        self.scaler = self.runtime.scaler()
        self.guard = loop.Guard(self.optimizers, self.scaler)
        if self.tree["runtime"]["compile"]:
            for phase in self.task.phases:
                getattr(self.task, phase).compile()  # in place: names in the checkpoint never grow a prefix

    def _spread(self) -> None:
        """Distribute the networks over all ranks, in place, as runtime.parallel says."""
        if self.ranks.world_size == 1:
            return
        if self.tree["runtime"].get("sync_batch_norm", True) and self.ranks.num_data_ranks > 1:
            from dlcli.runtime.batch_norm import synchronise

            for phase in self.task.phases:
                synchronise(getattr(self.task, phase), self.ranks)
        if self.ranks.num_data_ranks > 1:
            self.task.share(self.ranks.sum_in_place)
        how = self.tree["runtime"].get("parallel", "ddp")
        if how != "ddp":
            from dlcli.runtime import sharding

            if how == "fsdp":
                self.ranks = sharding.shard(self.task, self.task.phases, self.ranks)
            else:
                for phase in self.task.phases:
                    network = getattr(self.task, phase)
                    sharding.parallelize(network, build.tensor_parallel_plan(network), self.ranks)

    def _choose_runtime(self) -> None:
        """Choose the runtime, by measuring if the config leaves it open."""
        trainer, per_epoch = self.tree["trainer"], self.train_source.steps_per_epoch
        steps = trainer["max_steps"] or trainer["epochs"] * per_epoch
        timer = Timer(self.task, self._made_up_steps)
        chosen, self.runtime_reason = choose(self.runtime, self.tree["runtime"], timer, steps)
        words = {"precision": chosen.precision, "channels_last": chosen.channels_last, "threads": chosen.threads}
        self.runtime = replace(self.runtime, **self.ranks.broadcast(words))
        self.runtime.use_threads()

    def _made_up_steps(self, task: Task, runtime: Runtime) -> Iterator[loop.StepDone]:
        """Train on noise without changing any weight."""
        micro_batches = [checks.made_up_batch(self.tree, runtime.device)] * self.tree["trainer"][
            "accumulate_grad_batches"
        ]
        optimizers = build.build_optimizers(self.builder, self.tree, task, runtime)
        penalties = build.build_penalties(self.tree, task)
        return loop.train(
            task, repeat(micro_batches), optimizers, penalties=penalties, autocast=runtime.autocast(),
            lr_scale=lambda step: 0.0,
        )  # fmt: skip

    def memory_remedy(self) -> str:
        batch, accumulate = self.tree["dataset"]["batch_size"], self.tree["trainer"]["accumulate_grad_batches"]
        if batch == 1:
            return "The batch has only one example already: choose a smaller model, or runtime.precision=bf16."
        effective = batch * accumulate
        smaller = next(b for b in range(batch // 2, 0, -1) if effective % b == 0)
        words = f"dataset.batch_size={smaller} trainer.accumulate_grad_batches={effective // smaller}"
        return f"{words} keeps the effective batch of {effective}."
