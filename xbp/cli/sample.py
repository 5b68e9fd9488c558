"""``xbp sample``: what a language model writes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import xbp
from xbp.arguments import integer, number
from xbp.backend import find_backend
from xbp.cli.options import BackendName, Device
from xbp.datasets import decode_text, encode_text
from xbp.errors import DataError
from xbp.models import GPT
from xbp.paths import require_folder
from xbp.report.language import load_vocabulary
from xbp.report.run import WEIGHTS
from xbp.training import load_model

Folder = Annotated[
    Path, typer.Argument(metavar="DIR", help="A folder that xbp train gpt has written.")
]
Prompt = Annotated[str, typer.Option(help="The beginning; by default a line break.")]
Length = Annotated[int, typer.Option(help="How many characters to add.")]
Temperature = Annotated[
    float, typer.Option(help="Below 1 likely characters are preferred; 0 takes the likeliest.")
]
TopK = Annotated[int | None, typer.Option("--top-k", help="Draw from the likeliest alone.")]
Seed = Annotated[int, typer.Option(help="The same one writes the same text.")]


def sample(
    folder: Folder,
    prompt: Prompt = "\n",
    length: Length = 500,
    temperature: Temperature = 1.0,
    top_k: TopK = None,
    seed: Seed = 0,
    backend: BackendName = "numpy",
    device: Device = None,
) -> None:
    """Let a trained GPT continue a text, and print both.

    Each character is drawn from what the network predicts after those before it.
    """
    integer("--length", length, least=0)
    number("--temperature", temperature, least=0)
    integer("--seed", seed, least=0)
    if top_k is not None:
        integer("--top-k", top_k, least=1)
    found = find_backend(backend, device=device)
    xbp.set_backend(found.name, device=device)
    require_folder(folder, "one that xbp train gpt has written")
    model = load_model(folder / WEIGHTS)
    if not isinstance(model, GPT):
        msg = f"{str(folder / WEIGHTS)!r} holds a {type(model).__name__}; give a folder of a GPT"
        raise DataError(msg)
    vocabulary = load_vocabulary(folder, model)
    if not prompt:
        msg = "--prompt is empty, where at least one character was expected"
        raise DataError(msg)
    tokens = encode_text(prompt, vocabulary)
    written = model.generate(tokens, length, temperature=temperature, top_k=top_k, rng=seed)
    typer.echo(decode_text(written, vocabulary))
