"""``xbp train …``: train a model, test it, and write the results to a folder."""

from __future__ import annotations

from pathlib import Path

import typer

from xbp.cli import language, networks, texts
from xbp.cli.classify import train_classifier
from xbp.cli.language import train_language
from xbp.cli.options import (
    Activation,
    BackendName,
    BatchSize,
    Bidirectional,
    Channels,
    CharacterLimit,
    CheckpointEvery,
    CifarDir,
    Classes,
    Context,
    DataDir,
    Deep,
    Device,
    Dropout,
    DType,
    Epochs,
    Heads,
    Hidden,
    LabelledTexts,
    Layers,
    LearningRate,
    Length,
    Limit,
    Mirror,
    Options,
    Output,
    Pool,
    Precision,
    Ranks,
    Report,
    Resume,
    Seed,
    Shift,
    Shortcut,
    Steps,
    TestTexts,
    Text,
    TextLimit,
    TextsAtOnce,
    Unit,
    Variant,
    Weights,
    Width,
    Windows,
    Words,
)

app = typer.Typer(no_args_is_help=True, help="Train a model and test it.")


@app.command()
def lenet5(
    context: typer.Context,
    backend: BackendName = "numpy",
    device: Device = None,
    epochs: Epochs = 6,
    batch_size: BatchSize = 128,
    learning_rate: LearningRate = 0.004,
    seed: Seed = 0,
    dtype: DType = "float32",
    precision: Precision = "float32",
    limit: Limit = None,
    data_dir: DataDir = None,
    weights: Weights = None,
    classes: Classes = 10,
    activation: Activation = "relu",
    pool: Pool = "max",
    variant: Variant = None,
    report: Report = False,
    checkpoint_every: CheckpointEvery = None,
    resume: Resume = None,
    ranks: Ranks = None,
    output: Output = Path("runs/lenet5"),
) -> None:
    """Train LeNet-5 to read handwritten digits, and test it.

    The images are the 60,000 and 10,000 of MNIST, which ships with xbp. Shows the model and its
    progress, then the accuracy on the test images, class by class. Writes history.csv,
    model.safetensors, run.json and, with matplotlib, learning_curves.png and confusion_matrix.png.

    Ctrl-C ends training early; the model is still tested and written. With --checkpoint-every, a
    run that was interrupted or killed goes on by --resume, with the result of an uninterrupted one.
    """
    network = networks.lenet5(activation, pool, variant)
    train_classifier(network, Options.of(context))


def resnet(depth: int, parameters: str) -> None:
    """The command of a residual network."""

    def train(
        context: typer.Context,
        backend: BackendName = "numpy",
        device: Device = None,
        epochs: Epochs = 60,
        batch_size: BatchSize = 256,
        learning_rate: LearningRate = 0.05,
        seed: Seed = 0,
        dtype: DType = "float32",
        precision: Precision = "float32",
        limit: Limit = None,
        data_dir: CifarDir = None,
        weights: Weights = None,
        shortcut: Shortcut = "A",
        mirror: Mirror = True,
        shift: Shift = 0,
        report: Report = False,
        checkpoint_every: CheckpointEvery = None,
        resume: Resume = None,
        ranks: Ranks = None,
        output: Output = Path(f"runs/resnet{depth}"),
    ) -> None:
        train_classifier(networks.resnet(depth, shortcut), Options.of(context))

    train.__doc__ = f"""Train ResNet-{depth} ({parameters} parameters) on CIFAR-10, and test it.

    The network is that of He et al. 2016, section 4.2, with its augmentation: flips, and crops
    shifted by up to 4 pixels. Kernels learn by Muon, the rest by SGD with Nesterov's momentum, at
    rates that rise in a tenth of the steps and fall linearly; label smoothing 0.1. The last test
    takes the mean of the outputs for each image and its mirror image.

    Writes what xbp train lenet5 writes, and resumes and ends early as that does.
    """
    app.command(f"resnet{depth}")(train)


@app.command()
def vgg11(
    context: typer.Context,
    backend: BackendName = "numpy",
    device: Device = None,
    epochs: Epochs = 30,
    batch_size: BatchSize = 128,
    learning_rate: LearningRate = 0.05,
    seed: Seed = 0,
    dtype: DType = "float32",
    precision: Precision = "float32",
    limit: Limit = None,
    data_dir: CifarDir = None,
    weights: Weights = None,
    channels: Channels = 64,
    report: Report = False,
    checkpoint_every: CheckpointEvery = None,
    resume: Resume = None,
    ranks: Ranks = None,
    output: Output = Path("runs/vgg11"),
) -> None:
    """Train VGG-11 (9.2M parameters) on CIFAR-10, and test it.

    The network is configuration A of Simonyan & Zisserman 2015 with batch normalization and one
    fully connected layer. SGD with Nesterov's momentum 0.9 and weight decay 0.0005 (of kernels and
    matrices) follows one cycle of the learning rate. Augmentation, files and --resume are those of
    xbp train resnet20.
    """
    train_classifier(networks.vgg(11, channels), Options.of(context))


@app.command()
def fastcifar(
    context: typer.Context,
    backend: BackendName = "numpy",
    device: Device = None,
    epochs: Epochs = 16,
    batch_size: BatchSize = 500,
    learning_rate: LearningRate = 0.1,
    seed: Seed = 0,
    dtype: DType = "float32",
    precision: Precision = "float32",
    limit: Limit = None,
    data_dir: CifarDir = None,
    weights: Weights = None,
    mirror: Mirror = True,
    shift: Shift = 1,
    report: Report = False,
    checkpoint_every: CheckpointEvery = None,
    resume: Resume = None,
    ranks: Ranks = None,
    output: Output = Path("runs/fastcifar"),
) -> None:
    """Train a small network on CIFAR-10 in few minutes, and test it.

    Its first layer whitens patches of the images, as computed from 5,000 of them (Jordan 2024).
    Kernels learn by Muon, the rest by SGD with Nesterov's momentum, at rates that rise and fall
    linearly. Label smoothing 0.2, flips, and crops shifted by up to 2 pixels; the files and
    --resume are those of xbp train resnet20. The last test takes the mean of the outputs for each
    image, for it moved by one pixel both ways, and for the mirror images of these. Losses, those of
    the test included, are with label smoothing.
    """
    train_classifier(networks.fast_cifar(), Options.of(context))


for _depth, _parameters in ((20, "0.27M"), (32, "0.46M"), (44, "0.66M"), (56, "0.85M")):
    resnet(_depth, _parameters)


@app.command()
def gpt(
    context: typer.Context,
    text: Text,
    backend: BackendName = "numpy",
    device: Device = None,
    steps: Steps = 2000,
    layers: Layers = 4,
    heads: Heads = 4,
    width: Width = 128,
    context_: Context = 64,
    dropout: Dropout = 0.0,
    unit: Unit = "characters",
    batch_size: Windows = 12,
    learning_rate: LearningRate = 0.002,
    seed: Seed = 0,
    dtype: DType = "float32",
    precision: Precision = "float32",
    limit: CharacterLimit = None,
    report: Report = False,
    checkpoint_every: CheckpointEvery = None,
    resume: Resume = None,
    ranks: Ranks = None,
    output: Output = Path("runs/gpt"),
) -> None:
    """Train a small GPT to write like a text, and test it.

    Each batch holds windows of the text at random places. AdamW (0.9, 0.99) with weight decay 0.1
    (of matrices) follows one cycle of the learning rate. The defaults are nanoGPT's for a CPU.
    The test loss is the mean of -log p over the characters of the last tenth, in nats.

    Writes history.csv, model.safetensors, vocabulary.json, run.json, and sample.txt, which the
    network wrote; xbp sample lets it write more. Ctrl-C ends training early; with
    --checkpoint-every a run that was interrupted goes on by --resume, with the result of an
    uninterrupted one.
    """
    sizes = language.Sizes(layers, heads, width, context_, dropout)
    train_language(text, unit, steps, sizes, Options.of(context))


@app.command()
def text(
    context: typer.Context,
    texts_: LabelledTexts,
    test: TestTexts = None,
    backend: BackendName = "numpy",
    device: Device = None,
    epochs: Epochs = 10,
    words: Words = 20_000,
    length: Length = 100,
    width: Width = 64,
    hidden: Hidden = 64,
    layers: Deep = 1,
    bidirectional: Bidirectional = False,
    dropout: Dropout = 0.3,
    batch_size: TextsAtOnce = 32,
    learning_rate: LearningRate = 0.005,
    seed: Seed = 0,
    dtype: DType = "float32",
    precision: Precision = "float32",
    limit: TextLimit = None,
    report: Report = False,
    checkpoint_every: CheckpointEvery = None,
    resume: Resume = None,
    ranks: Ranks = None,
    output: Output = Path("runs/text"),
) -> None:
    """Train a network to classify texts, and test it.

    The words of a text, in lower case, are embedded and read by an LSTM, whose last states a linear
    layer classifies (models.TextClassifier). AdamW follows one cycle of the learning rate.

    Writes what xbp train lenet5 writes, and vocabulary.json; xbp predict classifies other texts.
    Resumes and ends early as that does.
    """
    sizes = texts.Sizes(width, hidden, layers, bidirectional, dropout)
    texts.train_texts(texts_, test, length, words, sizes, Options.of(context))
