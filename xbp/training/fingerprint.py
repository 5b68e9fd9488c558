"""What tells the `fit` of a checkpoint from another one."""

from __future__ import annotations

import json
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from xbp.backend import Array, to_numpy
from xbp.errors import on_one_line
from xbp.training.files.tensors import plain_scalar
from xbp.training.state import Pieces


class Described(Protocol):
    """Data that can be told from others."""

    drop_last: bool

    def digests(self, what: str) -> dict[str, str]: ...


class Fingerprint:
    """What a `fit` was asked to do: a checkpoint is resumed by a `fit` with an equal one.

    Parameters
    ----------
    pieces : Pieces
    batch_size : int
    part : int
        Samples of a part, where gradients are accumulated; else 0.
    data, validation : Described
        Asked for digests when the description is wanted, as all data may be read for them.
    """

    def __init__(
        self,
        pieces: Pieces,
        batch_size: int,
        data: Described,
        validation: Described | None,
        *,
        part: int = 0,
    ) -> None:
        self.data, self.validation = data, validation
        optimizer, loss = pieces.optimizer, pieces.loss
        self.options = {
            "the model": repr(pieces.model).replace("LastTimeStep()", "Last()"),  # the earlier name
            "the loss": _described(loss),
            "the optimizer": _described(optimizer),
            "the learning rate": _described(optimizer._lr),
            "the list of metrics": list(pieces.metrics),
            "batch_size": batch_size,
        }
        if part:  # a key that older files do not have, as the following
            self.options["the batch_size that is accumulated"] = part
        if pieces.precision != "float32":
            self.options["the precision"] = pieces.precision
        if data.drop_last:
            self.options["drop_last"] = True
        if pieces.augment is not None:
            self.options["the augmentation"] = repr(pieces.augment)
        if optimizer._groups:
            self.options["the parameter groups"] = [_group(kept) for kept in optimizer._groups]

    @cached_property
    def description(self) -> dict[str, Any]:
        """The options, and digests of the data, as JSON values."""
        found = self.options | self.data.digests("")
        if self.validation is not None:
            found |= self.validation.digests("the validation")
        return json.loads(json.dumps(found, default=plain_scalar))  # type: ignore[no-any-return]


PLAIN = (bool, int, float, str, tuple, type(None))


def _group(kept: Any) -> dict[str, Any]:
    """The number of parameters and the own options of a group."""
    options = {
        name: value if isinstance(value, PLAIN) else _described(value)
        for name, value in kept.options().items()
    }
    return {"parameters": len(kept.indices), **options}


def _described(thing: Any) -> Any:
    """A number as it is; anything else by its class and its plain options."""
    if isinstance(thing, int | float | str):
        return thing
    options = vars(thing) if hasattr(thing, "__dict__") else {}
    shown = [
        f"{name}={value!r}"
        for name, value in sorted(options.items())
        if isinstance(value, PLAIN) and not name.startswith("_") and name != "steps"
    ]
    name = getattr(thing, "__qualname__", None) or type(thing).__name__
    return f"{name}({', '.join(shown)})"


def digest_of(array: Array) -> str:
    import hashlib  # here, as it would take milliseconds of `import xbp`

    host = np.asarray(to_numpy(array), order="C")
    digest = hashlib.sha256(host.data).hexdigest() if host.size else ""
    return f"{host.dtype.name} {host.shape} with SHA-256 {digest}"


def difference(now: Any, then: Any) -> str:
    """How a value differs from an earlier one: of texts, the first lines that differ."""
    if now is None or then is None:
        return "is not part of both"
    pairs = zip(str(now).splitlines(), str(then).splitlines(), strict=False)
    shown = next(((a, b) for a, b in pairs if a != b), (str(now), str(then)))
    now, then = (on_one_line(text.strip(), 200) for text in shown)
    return f"is {now}, where it was {then}"
