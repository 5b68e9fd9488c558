"""Parameter groups: subsets of an optimizer's parameters with options of their own."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from typing import Any

from xbp.arguments import described
from xbp.errors import InputError, UnknownNameError
from xbp.nn.layer import Layer
from xbp.nn.norm import LayerNorm
from xbp.nn.parameter import Parameter

Options = dict[str, Any]

SHARED = ("parameters", "steps", "state", "counts", "_joints")
"""Attributes of an optimizer that all of its groups share."""


# --- public --------------------------------------------------------------------------------------


def decay_groups(model: Layer, weight_decay: float) -> list[Options]:
    """Two parameter groups of a model: one with weight decay, and one without.

    Parameters of fewer than two axes and those of normalizations have none: biases, scales, shifts,
    the slopes of PReLU (as in nanoGPT, and He et al. 2019, section 3.1). Matrices, kernels and the
    tables of embeddings have it.

    Parameters
    ----------
    model : Layer
    weight_decay : float

    Returns
    -------
    list of dict
        For any optimizer; an empty group is left out.

    Examples
    --------
    >>> from xbp import nn, optim
    >>> model = nn.Sequential(nn.Linear(2, 3, rng=0), nn.PReLU(3))
    >>> optimizer = optim.AdamW(optim.decay_groups(model, weight_decay=0.1), lr=3e-4)
    >>> [(len(group["params"]), group["weight_decay"]) for group in optimizer.param_groups]
    [(1, 0.1), (2, 0.0)]
    """
    parameters = parameters_of(model, "decay_groups")
    norms = held_by(model, LayerNorm)
    decayed = [p for p in parameters if p.data.ndim >= 2 and id(p) not in norms]
    taken = {id(parameter) for parameter in decayed}
    return nonempty(
        {"params": decayed, "weight_decay": weight_decay},
        {"params": [p for p in parameters if id(p) not in taken], "weight_decay": 0.0},
    )


class Group(MutableMapping[str, Any]):
    """A parameter group as a dict, as in PyTorch: ``optimizer.param_groups[0]["lr"] = 0.01``.

    ``"params"`` is the list of its parameters. Every other name is an argument of the optimizer's
    constructor: either set for the group, or else the optimizer's current value. ``"lr"`` may be a
    schedule.

    Raises
    ------
    InputError
        In setting: the optimizer has no such argument, or the value is out of range.
    """

    def __init__(self, optimizer: Any, kept: Kept | None) -> None:
        self._optimizer, self._kept = optimizer, kept

    @property
    def _source(self) -> Any:
        """The optimizer whose attributes are the options of the group."""
        if self._kept is None:
            return self._optimizer
        return self._kept.member or self._kept.rule(self._optimizer)

    def __getitem__(self, name: str) -> Any:
        if name == "params":
            everyone = self._optimizer.parameters
            return everyone if self._kept is None else [everyone[i] for i in self._kept.indices]
        kind = self._source._kind
        if name not in arguments_of(kind):
            known = ", ".join(["params", *arguments_of(kind)])
            msg = f"a parameter group of {kind.__name__} has no {name!r}; it has {known}"
            raise UnknownNameError(msg)
        return vars(self._source)[attribute(name)]

    def __setitem__(self, name: str, value: Any) -> None:
        if name == "params":
            msg = "the parameters of a group cannot be replaced; use add_param_group"
            raise InputError(msg)
        whole, kept = self._source, self._kept
        checked = attributes(whole, self["params"], {name: value})
        place = kept.own if kept is not None and kept.member is None else vars(whole)
        place.update(checked)

    def __delitem__(self, name: str) -> None:
        """Return to the optimizer's value."""
        if self._kept is None or attribute(name) not in self._kept.own:
            msg = f"{name!r} is not set for this group, which has the optimizer's"
            raise UnknownNameError(msg)
        del self._kept.own[attribute(name)]

    def __iter__(self) -> Iterator[str]:
        yield "params"
        known = vars(self._source)
        yield from (name for name in arguments_of(self._source._kind) if attribute(name) in known)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __repr__(self) -> str:
        options = [f"{name}={self[name]!r}" for name in self if name != "params"]
        return f"<{len(self['params'])} parameters, {', '.join(options)}>"


# --- state of an optimizer ------------------------------------------------------------------------


class Kept:
    """An optimizer's record of a group.

    Parameters
    ----------
    indices : range
        The indices of the group's parameters.
    own : dict
        The attributes that differ from the optimizer's.
    member : Optimizer or None
        An optimizer of another class for the group (``"rule"``), with its options.
    """

    def __init__(self, indices: range, own: Options, member: Any = None) -> None:
        self.indices, self.own, self.member = indices, own, member

    def rule(self, optimizer: Any) -> Any:
        """The optimizer with the attributes of the group."""
        source = optimizer if self.member is None else self.member
        rule = object.__new__(type(source))
        shared = {name: getattr(optimizer, name) for name in SHARED}
        vars(rule).update(vars(source) | self.own | shared | {"_groups": []})
        return rule

    def own_rate(self) -> Any:
        """The group's own rate or schedule; None if it has the optimizer's."""
        own = self.own if self.member is None else vars(self.member)
        return own.get("_lr")

    def set_own_rate(self, lr: float) -> None:
        (self.own if self.member is None else vars(self.member))["_lr"] = lr

    def options(self) -> Options:
        """The group's own options by the names of arguments, including another class."""
        if self.member is None:
            return {name.removeprefix("_"): value for name, value in self.own.items()}
        known = vars(self.member)
        names = [name for name in arguments_of(self.member._kind) if attribute(name) in known]
        options = {name: known[attribute(name)] for name in names}
        return {"rule": type(self.member).__name__, **options}


def split(parameters: Any) -> tuple[list[Any], list[tuple[range, Options]]]:
    """The parameters given to an optimizer, in order, and the options of groups among them.

    Raises
    ------
    InputError
        The argument is no iterable, or its groups are malformed, empty or mixed with parameters.
    """
    if not isinstance(parameters, Iterable):
        msg = (
            "an optimizer takes Parameters in a list or another iterable, as from "
            f"model.parameters(); got {described(parameters)}"
        )
        raise InputError(msg)
    given = list(parameters)
    if not any(isinstance(entry, Mapping) for entry in given):
        return given, []
    everyone: list[Any] = []
    groups = []
    for number, entry in enumerate(given):
        if not isinstance(entry, Mapping) or "params" not in entry:
            msg = (
                "an optimizer takes parameters, or groups such as {'params': [...], 'lr': 0.1}, "
                f"not both; the entry {number} is {described(entry)}"
            )
            if isinstance(entry, Mapping):
                msg = f"parameter group {number} has no 'params'; write {{'params': [...], …}}"
            raise InputError(msg)
        own = dict(entry)
        held = own.pop("params")
        if isinstance(held, Parameter):
            held = [held]
        elif isinstance(held, str) or not isinstance(held, Iterable):
            msg = (
                f"the 'params' of parameter group {number} must be Parameters in a list or another "
                f"iterable, got {described(held)}"
            )
            raise InputError(msg)
        start = len(everyone)
        everyone += held
        if len(everyone) == start:
            msg = f"parameter group {number} has no parameters; leave it out, or fill it"
            raise InputError(msg)
        groups.append((range(start, len(everyone)), own))
    return everyone, groups


def keep(
    optimizer: Any, number: int, indices: range, own: Options, base: Any, given: Options | None
) -> Kept:
    """A group of an optimizer, its options checked by the constructor of its class.

    Parameters
    ----------
    optimizer : Optimizer
    number : int
        The group's number in error sentences.
    indices : range
    own : dict
        Options; ``"rule"`` is another class of optimizers, with its own defaults.
    base : type
        The class `Optimizer`.
    given : dict or None
        See `attributes`.

    Raises
    ------
    InputError
        An option is unknown or out of range.
    """
    parameters = [optimizer.parameters[index] for index in indices]
    own = dict(own)
    try:
        if "rule" not in own:
            return Kept(indices, attributes(optimizer, parameters, own, given) if own else {})
        rule: Any = own.pop("rule")
        if not (isinstance(rule, type) and issubclass(rule, base)):
            msg = f"its 'rule' must be a class such as optim.AdamW, got {described(rule)}"
            raise InputError(msg)
        _check_names(rule, own)
        lr = arguments_of(rule).get("lr")
        if lr is not None and lr.default is lr.empty:
            own.setdefault("lr", optimizer._lr)
        return Kept(indices, {}, rule(parameters, **own))
    except InputError as error:
        msg = f"parameter group {number}: {error}"
        raise InputError(msg) from None


# --- options --------------------------------------------------------------------------------------


def attribute(name: str) -> str:
    """The name of the attribute that holds an argument."""
    return "_lr" if name == "lr" else name


def arguments_of(kind: type) -> dict[str, inspect.Parameter]:
    """The arguments of a constructor, without the parameters."""
    signature = inspect.signature(kind.__init__)  # type: ignore[misc]  # of the class, as it is
    return dict(list(signature.parameters.items())[2:])


def constructor_of(kind: type, args: Any, options: Options) -> tuple[type, Options]:
    """The class whose constructor checks the options of groups, and its known arguments.

    It is the optimizer's own class, unless the first argument of that one's constructor is not the
    parameters but, say, a model; then it is the next base class in xbp, with unknown arguments.
    """
    first = list(inspect.signature(kind.__init__).parameters)[1]  # type: ignore[misc]
    given = dict(zip(arguments_of(kind), args[1:], strict=False)) | options
    source = args[0] if args else given.pop(first, None)
    if isinstance(source, Layer):
        return next(base for base in kind.__mro__[1:] if base.__module__.startswith("xbp.")), {}
    return kind, given


def attributes(
    optimizer: Any, parameters: list[Parameter], options: Options, given: Options | None = None
) -> Options:
    """The attributes of an optimizer made with these parameters and options.

    Making one lets its constructor check the options, also in combination.

    Parameters
    ----------
    optimizer : Optimizer
    parameters : list of Parameter
    options : dict
    given : dict, optional
        Other arguments; by default from the optimizer's attributes.

    Raises
    ------
    InputError
        An option is unknown or out of range.
    """
    kind, known = optimizer._kind, vars(optimizer)
    _check_names(kind, options)
    names = [name for name in arguments_of(kind) if attribute(name) in known]
    given = {name: known[attribute(name)] for name in names} | (given or {})
    made = vars(kind(parameters, **(given | options)))
    lost = [name for name in options if attribute(name) not in made]
    if lost:
        msg = (
            f"{kind.__name__} has no attribute {lost[0]!r} in which it keeps that argument, so a "
            "group cannot have its own"
        )
        raise InputError(msg)
    return {attribute(name): made[attribute(name)] for name in options}


def _check_names(kind: type, options: Options) -> None:
    known = arguments_of(kind)
    for name in options:
        if name not in known:
            msg = f"{kind.__name__} has no option {name!r}, only {', '.join(known)}"
            raise InputError(msg)


def nonempty(*groups: Options) -> list[Options]:
    return [group for group in groups if group["params"]]


def held_by(model: Layer, *kinds: type[Layer]) -> set[int]:
    """The identities of the parameters of all layers of these kinds."""
    layers = [layer for layer in model.tree() if isinstance(layer, kinds)]
    return {id(parameter) for layer in layers for parameter in layer.parameters()}


def parameters_of(model: Any, what: str) -> list[Parameter]:
    if not isinstance(model, Layer):
        msg = f"{what} takes a model, an nn.Layer, got {described(model)}"
        raise InputError(msg)
    return list(model.parameters())
