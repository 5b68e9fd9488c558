"""Parameter groups: some parameters of an optimizer, and the options in which they differ."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from typing import Any

from xbp.arguments import described
from xbp.errors import InputError
from xbp.nn.layer import Layer
from xbp.nn.norm import LayerNorm
from xbp.nn.parameter import Parameter

Options = dict[str, Any]

SHARED = ("parameters", "steps", "state", "counts")
"""Attributes of an optimizer that all of its groups share."""


# --- what a user calls ---------------------------------------------------------------------------


def decay_groups(model: Layer, weight_decay: float) -> list[Options]:
    """Two parameter groups of a model: one with weight decay, and one without.

    Without are parameters of fewer than two axes and those of normalizations: biases, scales and
    shifts, the slopes of PReLU (as in nanoGPT, and He et al. 2019, section 3.1). With it are
    matrices, kernels, and the tables of embeddings.

    Parameters
    ----------
    model : Layer
    weight_decay : float

    Returns
    -------
    list of dict
        For any optimizer; a group that would be empty is left out.

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
    constructor; what has been set for the group is the group's own, and what has not is the
    optimizer's, also where that is changed later. ``"lr"`` may be a schedule.

    Raises
    ------
    InputError
        In setting: the optimizer has no such argument, or the value is out of range.
    """

    def __init__(self, optimizer: Any, kept: Kept | None) -> None:
        self._optimizer, self._kept = optimizer, kept

    @property
    def _source(self) -> Any:
        """The optimizer that knows all options of the group."""
        if self._kept is None:
            return self._optimizer
        return self._kept.member or self._kept.rule(self._optimizer)

    def __getitem__(self, name: str) -> Any:
        if name == "params":
            everyone = self._optimizer.parameters
            return everyone if self._kept is None else [everyone[i] for i in self._kept.indices]
        if name not in arguments_of(self._source._kind):
            raise KeyError(name)
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
        """Take the optimizer's value again."""
        if self._kept is None or attribute(name) not in self._kept.own:
            raise KeyError(name)
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


# --- what an optimizer keeps ----------------------------------------------------------------------


class Kept:
    """What an optimizer keeps of a group.

    Parameters
    ----------
    indices : range
        Which of the optimizer's parameters.
    own : dict
        The attributes that are not the optimizer's.
    member : Optimizer or None
        An optimizer of another class, which has the options of the group in place of the whole.
    """

    def __init__(self, indices: range, own: Options, member: Any = None) -> None:
        self.indices, self.own, self.member = indices, own, member

    def rule(self, optimizer: Any) -> Any:
        """The optimizer as it is for these parameters."""
        source = optimizer if self.member is None else self.member
        rule = object.__new__(type(source))
        shared = {name: getattr(optimizer, name) for name in SHARED}
        vars(rule).update(vars(source) | self.own | shared | {"_groups": []})
        return rule

    def own_rate(self) -> Any:
        """A rate or schedule of its own; None where it has the optimizer's."""
        own = self.own if self.member is None else vars(self.member)
        return own.get("_lr")

    def set_own_rate(self, lr: float) -> None:
        (self.own if self.member is None else vars(self.member))["_lr"] = lr

    def options(self) -> Options:
        """Its own options by the names of arguments, with the class if that is another one."""
        if self.member is None:
            return {name.removeprefix("_"): value for name, value in self.own.items()}
        known = vars(self.member)
        names = [name for name in arguments_of(self.member._kind) if attribute(name) in known]
        options = {name: known[attribute(name)] for name in names}
        return {"rule": type(self.member).__name__, **options}


def split(parameters: Any) -> tuple[list[Any], list[tuple[range, Options]]]:
    """What an optimizer was given: its parameters in order, and the options of those in groups.

    Raises
    ------
    InputError
        It is no iterable, or groups that are malformed, empty or mixed with parameters.
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
        Which group it is, for sentences.
    indices : range
    own : dict
        Options; ``"rule"`` is another class of optimizers, whose defaults hold for the others.
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
    """Where an optimizer keeps an argument."""
    return "_lr" if name == "lr" else name


def arguments_of(kind: type) -> dict[str, inspect.Parameter]:
    """The arguments of a constructor, but for the parameters."""
    signature = inspect.signature(kind.__init__)  # type: ignore[misc]  # of the class, as it is
    return dict(list(signature.parameters.items())[2:])


def constructor_of(kind: type, args: Any, options: Options) -> tuple[type, Options]:
    """The class whose constructor takes the options of groups, and the arguments that it was given.

    That is the optimizer's own class, unless its constructor takes something else in the place of
    the parameters, as a model; then it is the next one of xbp, of whose arguments nothing is known.
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
    """The attributes that an optimizer of such parameters has for these options.

    They are those of an optimizer that is made for it: so a constructor checks its arguments, and
    one beside the others.

    Parameters
    ----------
    optimizer : Optimizer
    parameters : list of Parameter
    options : dict
    given : dict, optional
        Other arguments; by default, what the optimizer's attributes say.

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
