"""The parts of a language model's run: the rows of its table, and its vocabulary."""

from __future__ import annotations

import json
import math
from pathlib import Path

from xbp.errors import DataError
from xbp.models import GPT
from xbp.nn import Layer
from xbp.nn.summary import LayerSummary
from xbp.report.run import VOCABULARY, read_file


def rows_of(model: GPT) -> list[LayerSummary]:
    """The layers of a GPT, in the order of the forward, for a sequence of its full length."""
    features = (model.context, model.blocks[0].linear1.in_features)  # type: ignore[attr-defined]
    rows = []
    layers: dict[str, Layer] = {"tokens": model.tokens, "positions": model.positions}
    layers |= {f"blocks.{index}": block for index, block in enumerate(model.blocks)}
    layers |= {"norm": model.norm}
    for name, layer in layers.items():
        parameters = sum(math.prod(p.shape) for p in layer.parameters())
        rows.append(LayerSummary(name, type(layer).__name__, features, parameters))
    logits = (model.context, model.vocabulary)
    if model.head is None:
        return [*rows, LayerSummary("tokens", "their product", logits, 0)]
    parameters = sum(math.prod(p.shape) for p in model.head.parameters())
    return [*rows, LayerSummary("head", type(model.head).__name__, logits, parameters)]


def load_vocabulary(folder: Path, model: GPT) -> list[str] | list[bytes]:
    """The vocabulary of the run in `folder`.

    Raises
    ------
    DataError
        The file is missing or malformed, or of another model.
    """
    try:
        content = json.loads(read_file(folder, VOCABULARY))
        if content["unit"] == "bytes" and content["vocabulary"] == []:
            found: list[str] | list[bytes] = [bytes([i]) for i in range(256)]
        else:
            found = content["vocabulary"]
            whole = content["unit"] == "characters" and isinstance(found, list)
            if not whole or not all(isinstance(each, str) and len(each) == 1 for each in found):
                raise ValueError
        if len({*found}) == len(found) == model.vocabulary:
            return found
    except (ValueError, TypeError, LookupError, RecursionError):
        pass
    msg = (
        f"{str(folder / VOCABULARY)!r} is not the vocabulary of the model beside it, "
        f"{model.vocabulary} different characters; train again"
    )
    raise DataError(msg)
