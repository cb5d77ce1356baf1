"""Every setting of a config: its type, range and meaning, as one table."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from dlcli.config.schema import Setting, real, several, switch, text, whole, word

RESERVED_NAMES = ("latest", "last", "best", "checkpoint")  # each means a run or a checkpoint of one


def _column(meaning: str) -> Setting:
    annotation = Annotated[int, Field(strict=True, ge=1)] | Annotated[str, Field(strict=True)] | None
    expects = "a name of the header, or a number from 1 (or null)"
    return Setting(annotation, expects, f"{meaning}; null: found by usual names.")


_PATH = r"^[^\x00-\x1f]{1,4000}$"
_LABEL = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,79}$"
_AUTO_OR_SWITCH = Annotated[bool, Field(strict=True)] | Literal["auto"]
_WIDTH = whole(1, 65_536, "")

SETTINGS: dict[str, Setting] = {
    "seed": whole(
        0, 2**32 - 1, "Start of every random number: weights, order, dropout, augmentation, the validation split."
    ),
    "name": text(
        _LABEL,
        "1 to 80 letters, digits, '.', '_' or '-', beginning with a letter or digit",
        "Name of the run; null draws two words.",
        optional=True,
    ),
    "trainer.epochs": whole(1, 1_000_000, "Passes over the training data."),
    "trainer.max_steps": whole(1, 10**12, "Stop after this many optimizer steps; replaces epochs.", optional=True),
    "trainer.max_time": text(
        r"^(\d{1,6}h(\d{1,7}m)?(\d{1,9}s)?|\d{1,7}m(\d{1,9}s)?|\d{1,9}s)$",
        "a time like 90s, 10m or 1h30m",
        "Train this long, schedule stretched to fit; replaces epochs.",
        optional=True,
    ),
    "trainer.accumulate_grad_batches": whole(1, 100_000, "Micro-batches of dataset.batch_size per optimizer step."),
    "trainer.monitor": text(
        r"^val/[\w/.-]{1,80}$",
        "a score of the task, like val/accuracy",
        "The score that decides which checkpoint is best.",
    ),
    "trainer.eval_every": whole(1, 10**12, "Steps between evaluations; null: every epoch.", optional=True),
    "trainer.save_every": whole(1, 10**12, "Steps between checkpoints; null: at every evaluation.", optional=True),
    "trainer.keep_checkpoints": whole(2, 1_000_000, "Newest checkpoints kept; the best is kept besides."),
    "trainer.pretrained": text(
        _PATH,
        "a run, a checkpoint, a file of weights, a folder of transformers, hf://NAME, or imagenet",
        "Initial weights; parts that do not fit by name and shape, such as a new head, start fresh.",
        optional=True,
    ),
    "trainer.log_every": whole(1, 10**9, "Steps between two recorded points of the loss curve."),
    "dataset.name": text(_LABEL, "a name", "Name of the data."),
    "dataset.root": text(
        _PATH, "a path", "Folder (or archive) searched first, before $DLCLI_DATA and ./data.", optional=True
    ),
    "dataset.download": switch("Download the data if no folder has them."),
    "dataset.batch_size": whole(
        1, 1_000_000, "Examples in a micro-batch; trainer.accumulate_grad_batches of them make a step."
    ),
    "dataset.eval_batch_size": Setting(
        Annotated[int, Field(strict=True, ge=1, le=1_000_000)] | Literal["auto"],
        "a whole number from 1 to 1,000,000, or auto",
        "Examples of one batch of evaluation; auto: as many as fit.",
    ),
    "dataset.val_size": Setting(
        Annotated[int, Field(strict=True, ge=1, le=10**9)] | Annotated[float, Field(strict=True, gt=0, lt=1)],
        "a whole number, 1 or more, or a share between 0 and 1",
        "Examples split off the training data, by seed, for validation: a number of them, or a share.",
    ),
    "dataset.num_workers": whole(0, 256, "Processes that read the data; 0: the data live on the device if they fit."),
    "dataset.in_memory": Setting(_AUTO_OR_SWITCH, "auto, true or false", "Keep the whole set on the device."),
    "dataset.num_classes": whole(
        1, 1_000_000, "Number of labels, 1 where a number is predicted; null: counted in the data.", optional=True
    ),
    "dataset.num_tokens": whole(2, 10_000_000, "Size of the vocabulary; null: counted in the data.", optional=True),
    "dataset.path": text(_PATH, "a path", "File of the data, here or under a data root.", optional=True),
    "dataset.val_path": text(_PATH, "a path", "File to validate on; null: split off by val_size.", optional=True),
    "dataset.test_path": text(_PATH, "a path", "File to test on; null: a fixed fifth of the data.", optional=True),
    "dataset.text_column": _column("Which column is the sentence"),
    "dataset.label_column": _column("Which column is the label"),
    "dataset.tokenizer": word(("bpe", "words", "characters"), "What a token is: byte pairs, words or characters."),
    "dataset.tokenizer_file": text(
        _PATH,
        "a tokenizer.json, the folder that holds it, or hf://NAME",
        "A pretrained tokenizer in place of one learnt from the data.",
        optional=True,
    ),
    "dataset.max_length": whole(1, 100_000, "Most tokens of an example; the rest is cut off."),
    "dataset.context_length": whole(1, 1_000_000, "Tokens of a text that are read together."),
    "dataset.test_size": Setting(
        Annotated[int, Field(strict=True, ge=1, le=10**9)] | Annotated[float, Field(strict=True, gt=0, lt=1)],
        "a whole number, 1 or more, or a share between 0 and 1",
        "Cut off the end of the data to test on: a number of examples or characters, or a share.",
    ),
    "dataset.target_path": text(
        _PATH, "a path", "Translations of the sentences, line by line; null: they follow a tab.", optional=True
    ),
    "dataset.test_target_path": text(_PATH, "a path", "Translations of the test sentences.", optional=True),
    "dataset.source_language": text(
        r"^[a-z]{2,3}$", "a code of two or three letters, like en", "Language of the input."
    ),
    "dataset.target_language": text(
        r"^[a-z]{2,3}$", "a code of two or three letters, like de", "Language of the output."
    ),
    "dataset.word_dropout": real(0, 1, "Share of the training tokens shown as <unk>.", below=True),
    "dataset.num_features": whole(1, 10_000_000, "Columns of numbers; null: counted in the data.", optional=True),
    "dataset.sample_rate": whole(1_000, 384_000, "Samples in a second, Hz; recordings are resampled to it."),
    "dataset.frame_ms": whole(1, 1_000, "Milliseconds of one output of a recogniser."),
    "dataset.lowercase": switch("Convert all letters to lower case."),
    "dataset.target": Setting(
        Annotated[str, Field(strict=True, pattern=_PATH)] | Annotated[int, Field(strict=True, ge=1)] | None,
        "the name of a column, or its number from 1 on (or null)",
        "The column that is predicted; null: the last.",
    ),
    "dataset.drop_columns": several(text(_PATH, "the name of a column", ""), 0, 10_000, "Columns that are not used."),
    "dataset.categories": several(
        text(_PATH, "the name of a column", ""), 0, 10_000, "Columns of numbers that are names, such as postcodes."
    ),
    "dataset.delimiter": word(
        ("auto", "comma", "semicolon", "tab", "pipe", "space"), "Separator between two cells; auto: detected."
    ),
    "dataset.header": Setting(_AUTO_OR_SWITCH, "auto, true or false", "Whether the first line names the columns."),
    "dataset.instances": switch("Masks hold ids of objects: 0 is background, all others are one class."),
    "dataset.ignore_index": whole(
        0, 65_535, "Pixel value in masks that is not a class; null: there is none.", optional=True
    ),
    "dataset.image_shape": several(whole(1, 16_384, ""), 3, 3, "Channels, height, width of an image."),
    "dataset.images": text(
        _PATH, "a path", "Folder of the images; null: the folder of the boxes' file.", optional=True
    ),
    "dataset.classes": several(
        text(_PATH, "the name of a class", ""), 1, 100_000, "Classes to learn; null: all of them.", optional=True
    ),
    "dataset.mean": several(real(-10, 10, ""), 1, 16, "Per channel, of pixels in [0, 1]."),
    "dataset.std": several(real(0, 10, "", above=True), 1, 16, "Per channel, of pixels in [0, 1]."),
    "model.hidden": several(_WIDTH, 0, 1_000, "Widths of the hidden layers."),
    "model.channels": several(_WIDTH, 1, 100, "Channels of the convolutions, one block each."),
    "model.widths": several(_WIDTH, 1, 100, "Channels of the convolutions or of their blocks, in order."),
    "model.kernel": whole(1, 64, "Rows and columns of the first convolution."),
    "model.activation": word(
        ("relu", "gelu", "tanh", "sigmoid", "leaky_relu", "elu", "silu"), "Nonlinearity after each hidden layer."
    ),
    "model.dropout": real(0, 1, "Share of activations dropped; follows regularization.dropout.", below=True),
    "model.batch_norm": switch("Batch normalization; follows regularization.batch_norm."),
    "model.depth": Setting(Literal[18, 34, 50, 101, 152], "one of 18, 34, 50, 101, 152", "Layers of the ResNet."),
    "model.stem": word(("cifar", "imagenet"), "First layers: for 32 x 32 images, or ImageNet's."),
    "model.variant": word(("bert", "distilbert"), "Which of the two."),
    "model.max_positions": whole(1, 100_000, "The most tokens of a sentence."),
    "model.max_length": whole(1, 100_000, "Follows dataset.max_length."),
    "model.patch": whole(1, 1_024, "Side of a patch, pixels; it divides the image's sides."),
    "model.hidden_size": whole(1, 65_536, "Size of a token's embedding, or units of a recurrent layer."),
    "model.num_layers": whole(1, 1_000, "Transformer blocks."),
    "model.num_heads": whole(1, 1_024, "Attention heads; their number divides model.hidden_size."),
    "model.cell": word(("rnn", "lstm", "gru"), "Kind of recurrent layer."),
    "model.embedding": whole(1, 65_536, "Size of a token's embedding; rows of an image are not embedded."),
    "model.pooling": word(("last", "attention"), "Which states are read out: the last, or a mean weighted by softmax."),
    "model.head_dropout": real(0, 1, "Share of activations dropped before the last layer.", below=True),
    "model.ffn_size": whole(1, 1_048_576, "Units of the feed-forward layers of a block."),
    "model.context_length": whole(
        1, 1_000_000, "Tokens it can look back on; follows dataset.context_length.", optional=True
    ),
    "model.pre_norm": switch("Normalise what goes into each layer of a block, not what comes out."),
    "model.tie_embeddings": switch("One matrix embeds the tokens and reads them out."),
    "model.experts": whole(1, 4_096, "Feed-forward networks of a mixture; each token goes through a few."),
    "model.top_k": whole(1, 4_096, "Experts that a token goes through."),
    "model.aux_loss_weight": real(0, 1_000, "Weight of the load-balancing loss of the experts."),
    "model.blocks": whole(1, 1_000, "Residual blocks at each size of map."),
    "model.norm": word(("batch", "frozen"), "Statistics of batch norm: the batch's, or those loaded with the weights."),
    "model.trainable_layers": whole(0, 5, "Number of backbone layers that are trained, counted from the last."),
    "model.smallest_anchor": whole(1, 1_024, "Side, in pixels, of anchors on a two-stage detector's finest map."),
    "model.proposals": whole(1, 10_000, "Proposals of an image that a two-stage detector looks at."),
    "model.fpn_channels": whole(1, 65_536, "Channels of the feature maps in which a detector finds objects."),
    "model.box_weight": real(0, 1_000, "Weight of the boxes' loss beside the classes'."),
    "model.score_threshold": real(0, 1, "Lowest score of a detection.", below=True),
    "model.nms_iou": real(0, 1, "Overlap of two detections of a class above which only the higher score is kept."),
    "model.max_detections": whole(1, 10_000, "Most detections of an image."),
    "model.version": word(("v2", "v3_small", "v3_large"), "Which MobileNet."),
    "model.features.sample_rate": whole(1_000, 384_000, "Follows dataset.sample_rate."),
    "model.features.frame_ms": whole(1, 1_000, "Follows dataset.frame_ms; a multiple of hop_ms."),
    "model.features.mels": whole(1, 1_024, "Mel bands of a spectrum."),
    "model.features.window_ms": whole(1, 1_000, "Length of one spectrum's window, milliseconds."),
    "model.features.hop_ms": whole(1, 1_000, "Milliseconds between two spectra."),
    "model.features.normalise": switch("Give each band of each recording mean 0 and variance 1."),
    "model.features.band_masks": whole(0, 100, "Masks over bands in training (SpecAugment)."),
    "model.features.band_width": whole(1, 1_024, "Bands that a mask covers at most."),
    "model.features.time_masks": whole(0, 100, "Masks over time in training (SpecAugment)."),
    "model.features.time_share": real(0, 1, "Share of a recording that a mask covers at most."),
    "model.multiplier": real(0, 100, "Factor for the network's widths.", above=True),
    "model.generator.latent": whole(1, 65_536, "Numbers the generator starts from."),
    "model.generator.hidden": several(_WIDTH, 0, 1_000, "Widths of the generator's hidden layers."),
    "model.discriminator.hidden": several(_WIDTH, 0, 1_000, "Widths of the discriminator's hidden layers."),
    "model.discriminator.dropout": real(0, 1, "Share of activations dropped.", below=True),
    "task.teacher": text(
        _PATH, "a run or a checkpoint", "The run or checkpoint to learn from, named as in dlcli eval."
    ),
    "task.temperature": real(0, 1_000, "What logits, or cosines of a contrastive loss, are divided by.", above=True),
    "task.views": whole(1, 16, "Augmented copies of each image in a batch."),
    "task.decay": real(0, 1, "Decay per batch of the moving mean of each class's embeddings.", below=True),
    "task.num_classes": whole(1, 1_000_000, "Follows dataset.num_classes.", optional=True),
    "task.alpha": real(0, 1, "Weight of the teacher against the labels."),
    "task.label_smoothing": real(0, 1, "Follows regularization.label_smoothing.", below=True),
    "task.mixup": real(0, 100, "Follows regularization.mixup."),
    "task.test_time_augmentation.mirror": switch("Answer for an image and its mirror image together."),
    "task.test_time_augmentation.shift": whole(
        0, 1_000, "Answer for an image and itself moved up-left and down-right by so many pixels together; 0: off."
    ),
    "task.decoding": word(("greedy", "beam"), "How a recogniser's output is decoded for the scores."),
    "task.beam_size": whole(1, 10_000, "Readings that a beam search keeps."),
    "task.dice": real(0, 1_000, "Weight of the Dice loss beside the cross-entropy."),
    "task.cutmix": real(0, 100, "Follows regularization.cutmix."),
    "task.loss": word(("mse", "mae", "huber"), "Squared or absolute error, or Huber's between them."),
    "optimizer.lr": real(0, 1_000, "Learning rate, times the schedule's share.", above=True),
    "optimizer.weight_decay": real(0, 1_000, "L2 penalty (decoupled in adamw); follows regularization.weight_decay."),
    "optimizer.momentum": real(0, 1, "Share of the last update that is kept.", below=True),
    "optimizer.nesterov": switch("Look ahead along the momentum."),
    "optimizer.orthogonal": switch("Orthogonalise the updates of matrices and filters; false: plain momentum."),
    "optimizer.hold_norm": switch("Keep each matrix at the norm sqrt(rows)."),
    "optimizer.iterations": whole(1, 100, "Newton-Schulz iterations of an update."),
    "optimizer.betas": several(real(0, 1, "", below=True), 2, 2, "Decay of the first and second moment."),
    "optimizer.eps": real(0, 1, "Added to the denominator.", above=True),
    "optimizer.alpha": real(0, 1, "Decay of the squared gradient's average.", below=True),
    "schedule.warmup": Setting(
        Annotated[int, Field(strict=True, ge=0, le=10**12)] | Annotated[float, Field(strict=True, gt=0, lt=1)],
        "a whole number from 0 to 1,000,000,000,000, or a share between 0 and 1",
        "Steps of linear warm-up at the start, or their share of all steps.",
    ),
    "schedule.every": whole(1, 1_000_000, "Epochs between two cuts."),
    "schedule.gamma": real(0, 1, "Factor of a cut.", above=True),
    "schedule.final": real(0, 1, "Share of the learning rate at the end."),
    "schedule.start": real(0, 1, "Share of the peak at the first step."),
    "schedule.pct_start": real(0, 1, "Share of the steps that goes up.", below=True),
    "schedule.patience": whole(0, 1_000_000, "Evaluations without a better score before a cut."),
    "schedule.factor": real(0, 1, "Factor of a cut.", above=True, below=True),
    "schedule.floor": real(0, 1_000, "The learning rate never falls below."),
    "schedule.lr": real(0, 1_000, "Follows optimizer.lr.", above=True),
    "regularization.dropout": real(0, 1, "Share of activations dropped in training.", below=True),
    "regularization.batch_norm": switch("Batch normalization where the model has the choice."),
    "regularization.l1": real(0, 1_000, "Weight of the sum of absolute weights in the loss."),
    "regularization.weight_decay": real(0, 1_000, "The optimizer's weight decay (L2)."),
    "regularization.label_smoothing": real(0, 1, "Share of the label spread over all classes.", below=True),
    "regularization.mixup": real(0, 100, "Alpha of mixup's Beta distribution; 0: off."),
    "regularization.cutmix": real(0, 100, "Alpha of cutmix's Beta distribution; 0: off."),
    "regularization.clip_norm": real(
        0, 1e12, "Largest norm of the gradient; null: no limit.", optional=True, above=True
    ),
    "regularization.early_stopping.patience": whole(
        1, 1_000_000, "Evaluations without a better score before training stops; null: never.", optional=True
    ),
    "regularization.early_stopping.min_delta": real(0, 1e12, "How much better counts as better."),
    "regularization.ema": real(
        0,
        1,
        "Decay of the weights' moving average, which is what is evaluated and kept; null: off.",
        optional=True,
        above=True,
        below=True,
    ),
    "augmentation.rotation": real(0, 180, "Largest rotation, degrees, either way.", optional=True),
    "augmentation.flip": Setting(
        Annotated[float, Field(strict=True, ge=0, le=1)] | Literal["alternate"] | None,
        "a number from 0 to 1, or alternate (or null)",
        "Probability of a horizontal flip; alternate: every image in every other epoch.",
    ),
    "augmentation.flip_vertical": real(0, 1, "Probability of an upside-down flip.", optional=True),
    "augmentation.crop": several(
        real(0, 1, "", above=True), 2, 2, "Random resized crop: smallest and largest share of the area.", optional=True
    ),
    "augmentation.shift": real(0, 1_000, "Largest shift, pixels, either way.", optional=True),
    "augmentation.jitter": real(0, 1, "Strength of brightness, contrast and saturation changes.", optional=True),
    "augmentation.padding_mode": word(
        ("zeros", "reflect"), "What fills an edge after a shift or rotation: black, or the image's own pixels."
    ),
    "augmentation.erase": real(0, 1, "Probability that a rectangle is erased.", optional=True),
    "runtime.device": text(r"^(auto|cpu|cuda(:\d{1,3})?)$", "auto, cpu, cuda or cuda:0", "Where the tensors live."),
    "runtime.precision": word(
        ("auto", "fp32", "tf32", "bf16", "fp16"),
        "Arithmetic of the forward and backward pass; auto: bf16 where it is measured to be faster.",
    ),
    "runtime.channels_last": Setting(
        _AUTO_OR_SWITCH, "auto, true or false", "Keep images and filters channel by channel; auto: as measured."
    ),
    "runtime.devices": whole(1, 65_536, "Devices used at once, each by a process (a rank) of its own."),
    "runtime.parallel": word(
        ("ddp", "fsdp", "tp"),
        "Each of several devices has the whole network (ddp), a shard of it (fsdp) or a part of each layer (tp).",
    ),
    "runtime.sync_batch_norm": switch("Batch norm over the examples of all devices; false: each device its own."),
    "runtime.threads": Setting(
        Annotated[int, Field(strict=True, ge=1, le=4_096)] | Literal["auto"] | None,
        "a whole number from 1 to 4,096, or auto (or null)",
        "CPU threads; auto: as measured; null: torch's choice.",
    ),
    "runtime.compile": switch("Compile the networks, in place."),
    "runtime.deterministic": switch("Use only algorithms that give the same bits every time."),
    "tracker.project": text(_LABEL, "1 to 80 letters, digits, '.', '_' or '-'", "The W&B project."),
    "tracker.entity": text(_LABEL, "1 to 80 letters, digits, '.', '_' or '-'", "The W&B team or user.", optional=True),
    "tracker.mode": word(("auto", "online", "offline"), "auto: online with a key, otherwise offline."),
    "tracker.name": text(_LABEL, "a name", "Which tracker."),
}


for _network in ("model", "model.generator", "model.discriminator"):  # what every network may take from the data
    SETTINGS[f"{_network}.num_classes"] = whole(1, 1_000_000, "Follows dataset.num_classes.", optional=True)
    SETTINGS[f"{_network}.image_shape"] = several(
        whole(1, 16_384, ""), 3, 3, "Follows dataset.image_shape.", optional=True
    )
    for _name in ("num_tokens", "num_features"):
        SETTINGS[f"{_network}.{_name}"] = whole(1, 10_000_000, f"Follows dataset.{_name}.", optional=True)


def setting_of_kind(example: object) -> Setting:
    """Return the setting for a value that has no entry in the table, from the kind of the value in its YAML."""
    if isinstance(example, bool):
        return switch("")
    if isinstance(example, int):
        return whole(-(10**15), 10**15, "")
    if isinstance(example, float):
        return real(-1e300, 1e300, "")
    if isinstance(example, str):
        return text(_PATH, "a word", "")
    if isinstance(example, list):
        return Setting(list, "a list, like [1,2]", "")
    return Setting(Any, "a value", "")


def seconds(duration: str) -> float:
    """`1h30m` -> 5400.0; the pattern of trainer.max_time has been checked."""
    total, digits = 0.0, ""
    for c in duration:
        if c.isdigit():
            digits += c
        else:
            total, digits = total + int(digits) * {"h": 3600, "m": 60, "s": 1}[c], ""
    return total
