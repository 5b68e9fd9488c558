"""The base of all optimizers: parameters, state, rate, weight decay, saving and loading."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Self, TypeAlias

from xbp.arguments import described, number, takes
from xbp.backend import (
    Array,
    HostArray,
    Namespace,
    array_namespace,
    backend_of,
    check_beside,
    dtype_name,
    on_device_of,
    to_numpy,
)
from xbp.errors import InputError
from xbp.nn.parameter import Buffer, Parameter
from xbp.optim.groups import SHARED, Group, Kept, Options, constructor_of, keep, split
from xbp.optim.joint import Joint, joined
from xbp.optim.schedules import rate_of
from xbp.primitives import plus_scaled, rescale
from xbp.primitives.updates import Scalar

LearningRate: TypeAlias = "float | Callable[[int], float]"
"""A number, or a schedule: a function of the step (see `xbp.optim.schedules`)."""

Parameters: TypeAlias = "Iterable[Parameter] | Iterable[Mapping[str, Any]]"
"""Parameters, or groups of them (see `Optimizer`)."""

State: TypeAlias = "dict[str, Array]"

Coefficients: TypeAlias = "tuple[float, ...]"


class Optimizer:
    """Base of all optimizers. A subclass is one `update` rule.

    Values that change with the step, other than arrays of a parameter's shape, are a pure function
    of the rate and the step: `coefficients`. They are passed to the rule as Python floats, or as
    0-d arrays in a captured step. A rule without its own `coefficients` gets the rate and the step,
    and is never captured.

    Parameters
    ----------
    parameters : iterable of Parameter, or of groups
        As from ``model.parameters()``. Move the model to its backend first. A group is a dict with
        its parameters, ``"params"``, and any of the constructor's arguments (``[{"params": …,
        "lr": 0.1}, {"params": …, "weight_decay": 0}]``), by default those of the optimizer.
        ``"rule"``, another class of optimizers, makes it a group of that class, with the defaults
        of that class. See `decay_groups`, and `param_groups`.
    lr : float or schedule
        η.
    weight_decay : float, default 0
        λ, the factor of an L2 penalty ½‖p‖²: g ← g + λp before the rule.
    decoupled_weight_decay : bool, default False
        Use p ← p - ηλp instead, before the rule (Loshchilov & Hutter 2019).

    Attributes
    ----------
    steps : int
        The number of steps made.

    Raises
    ------
    InputError
        There are no parameters, one occurs twice, or something is not a Parameter; a hyperparameter
        is out of range; a group is empty, malformed or has an unknown option.

    Notes
    -----
    The rule of a group is a copy of the optimizer with the group's attributes. Therefore an
    argument is an attribute of the same name, `update` changes `state` alone, and values derived
    from arguments are computed where they are used, not in the constructor.
    """

    def __new__(cls, *args: Any, **options: Any) -> Self:
        """Record the constructor's arguments, for the check of groups' options with them."""
        optimizer = super().__new__(cls)
        optimizer._given = (args, options)
        return optimizer

    _given: tuple[tuple[Any, ...], Options] = ((), {})

    def __init__(
        self,
        parameters: Parameters,
        lr: LearningRate,
        weight_decay: float = 0.0,
        *,
        decoupled_weight_decay: bool = False,
    ) -> None:
        self.parameters, groups = split(parameters)
        self._groups: list[Kept] = []
        self._check_parameters(0)
        self.lr = lr
        self.weight_decay = number("weight_decay", weight_decay, least=0)
        self.decoupled_weight_decay = decoupled_weight_decay
        self.steps = 0
        self.state: list[State] = [{} for _ in self.parameters]
        self.counts = [0] * len(self.parameters)  # updates of each parameter
        self._joints: dict[range, Joint] = {}  # of the last step
        self._kind, given = constructor_of(type(self), *vars(self).pop("_given", ((), {})))
        self._groups = [
            keep(self, index, indices, own, Optimizer, given)
            for index, (indices, own) in enumerate(groups)
        ]

    def _check_parameters(self, first: int) -> None:
        """Check the parameters from the index `first` on."""
        seen = {id(parameter) for parameter in self.parameters[:first]}
        for index, parameter in enumerate(self.parameters[first:], first):
            if not isinstance(parameter, Parameter):
                kind = type(parameter).__name__
                msg = f"an optimizer takes Parameters, as from model.parameters(); got a {kind}"
                raise InputError(msg)
            if isinstance(parameter, Buffer):
                msg = (
                    f"parameter {index} is a {parameter!r}, which its layer keeps and nobody "
                    "learns; give the optimizer model.parameters(), which has none of them"
                )
                raise InputError(msg)
            if id(parameter) in seen:
                msg = f"parameter {index} is given twice; it would be updated twice a step"
                raise InputError(msg)
            seen.add(id(parameter))
        if not self.parameters:
            msg = "an optimizer needs at least one parameter; this model has none"
            raise InputError(msg)

    def __repr__(self) -> str:
        public = {k: v for k, v in vars(self).items() if k not in SHARED and k[0] != "_"}
        options = {"lr": self._lr} | public
        if self._groups:
            options["groups"] = [
                {"params": len(kept.indices), **kept.options()} for kept in self._groups
            ]
        shown = ", ".join(f"{name}={value!r}" for name, value in options.items())
        return f"{type(self).__name__}({len(self.parameters)} parameters, {shown})"

    # --- groups ---

    @property
    def param_groups(self) -> list[Group]:
        """The groups as dicts, whose options can be set; without groups, one of all parameters.

        A group with a rate of its own no longer follows `lr`.
        """
        kept: list[Kept] | list[None] = self._groups or [None]
        return [Group(self, group) for group in kept]

    def add_param_group(self, group: Mapping[str, Any]) -> None:
        """Add parameters as a group with the options in this dict.

        Raises
        ------
        InputError
            As in the constructor; nothing has changed then.
        """
        if not isinstance(group, Mapping):
            msg = (
                f"an optimizer needs a group to add, as {{'params': [...]}}, got {described(group)}"
            )
            raise InputError(msg)
        added, ((_, own),) = split([group])
        first, before = len(self.parameters), list(self.parameters)
        self.parameters += added
        try:
            self._check_parameters(first)
            indices = range(first, len(self.parameters))
            kept = keep(self, len(self._groups) or 1, indices, own, Optimizer, None)
        except InputError:
            self.parameters = before
            raise
        self._groups = [*(self._groups or [Kept(range(first), {})]), kept]
        self.state += [{} for _ in added]
        self.counts += [0] * len(added)

    def rules(self) -> list[tuple[Optimizer, range]]:
        """For each group, the optimizer with its attributes, and its parameters' indices."""
        if not self._groups:
            return [(self, range(len(self.parameters)))]
        return [(kept.rule(self), kept.indices) for kept in self._groups]

    def own_rates(self) -> list[LearningRate | None]:
        """The rate or schedule of each group; None for the optimizer's."""
        return [kept.own_rate() for kept in self._groups]

    def set_own_rates(self, rates: Sequence[float | None]) -> None:
        """Set the rates of groups, except those that are None."""
        for kept, lr in zip(self._groups, rates, strict=True):
            if lr is not None:
                kept.set_own_rate(number("lr", lr, least=0))

    # --- the learning rate ---

    @property
    def lr(self) -> float:
        """The learning rate of the next step, which can be set to a number or a schedule.

        It holds for all parameters, except those of groups with a rate of their own.
        """
        return self.lr_at(self.steps)

    @lr.setter
    def lr(self, value: LearningRate) -> None:
        if callable(value):
            takes("a schedule as lr", value, "step")
        self._lr = value if callable(value) else number("lr", value, least=0)

    def lr_at(self, step: int) -> float:
        """The learning rate of step 0, 1, 2, …

        Raises
        ------
        InputError
            A schedule returns anything but a finite number of at least 0.
        """
        if not callable(self._lr):
            return self._lr
        return rate_of(self._lr, f"step {step}", self._lr(step))

    def rates_at(self, step: int) -> list[float]:
        """The learning rate of each group in step 0, 1, 2, …"""
        return [rule.lr_at(step) for rule, _ in self.rules()]

    # --- the step ---

    def coefficients(self, lr: float, t: int) -> Coefficients:
        """The arguments of `update` that change with the step, computed on the host.

        Parameters
        ----------
        lr : float
        t : int
            The number of the update of its parameter: 1, 2, 3, …

        Returns
        -------
        tuple of float
            Of the same length in each step. By default (lr, t).
        """
        return lr, t

    def update(self, xp: Namespace, p: Array, g: Array, state: State, *coefficients: Any) -> None:
        """Change the array `p` in place.

        Parameters
        ----------
        p, g : array
            Parameter and gradient; g must not be changed. Lists of them, if `multi_tensor`.
        state : dict
            The parameter's arrays by their `state_names`, from `start` at first; updated in place.
        *coefficients : float, or 0-d array of the dtype of `p`
            By default, the rate and the step. Each may only multiply an array: combinations of them
            are computed in `coefficients`.
        """
        msg = (
            f"{type(self).__name__} has no update rule; define update(self, xp, p, g, state, lr, t)"
        )
        raise NotImplementedError(msg)

    def multi_tensor(self) -> bool:
        """Whether `update` accepts lists of arrays, as multi-tensor kernels update all at once.

        Then `p`, `g` and the entries of `state` are lists. This works for rules that only pass
        arrays to functions of `xbp.primitives.updates`.
        """
        return False

    numbers, takes_lists = coefficients, multi_tensor  # earlier names

    def __init_subclass__(cls, **options: Any) -> None:
        """Accept the earlier names of `coefficients` and `multi_tensor`, and keep them alike."""
        super().__init_subclass__(**options)
        for name, earlier in (("coefficients", "numbers"), ("multi_tensor", "takes_lists")):
            if name in vars(cls):
                setattr(cls, earlier, vars(cls)[name])
            elif earlier in vars(cls):
                setattr(cls, name, vars(cls)[earlier])

    def start(self, xp: Namespace, p: Array) -> State:
        """The state of a parameter before its first update: zeros."""
        return {name: xp.zeros_like(p) for name in self.state_names()}

    def step(self, coefficients: Sequence[tuple[Scalar, ...]] | None = None) -> None:
        """Update every parameter that has a gradient.

        Parameters
        ----------
        coefficients : sequence of tuples, optional
            The `all_coefficients` of each parameter, as 0-d arrays; by default those of this step.
        """
        rules = self.rules()
        joints = [self._joint(indices) for _, indices in rules]  # all checks before any change
        # In a captured step the rate is part of the coefficients.
        rates = [rule.lr if coefficients is None else 0.0 for rule, _ in rules]
        for (rule, indices), lr, joint in zip(rules, rates, joints, strict=True):
            rule._step(indices, lr, coefficients, joint)
        self.steps += 1

    def _joint(self, indices: range) -> Joint | None:
        """These parameters, if their arrays are those of the last step; else they are checked."""
        joint, some = self._joints.get(indices), slice(indices.start, indices.stop)
        if joint is not None and joint.holds(self.parameters[some], self.state[some]):
            return joint
        self._joints.pop(indices, None)
        for index in indices:
            self._check_place(index, self.parameters[index])
        return None

    def _step(
        self,
        indices: range,
        lr: float,
        coefficients: Sequence[tuple[Scalar, ...]] | None,
        joint: Joint | None,
    ) -> None:
        """Update some parameters, as far as they have a gradient."""
        at_once, counts, some = self.multi_tensor(), self.counts, slice(indices.start, indices.stop)
        if joint is not None and at_once and len(set(counts[some])) == 1:
            t = counts[indices.start] + 1
            counts[some] = [t] * len(indices)
            self._update(joint, lr, t, coefficients)
            return
        for t, joint in joined(self.parameters, self.state, self._counted(indices), at_once):
            with on_device_of(joint.p[0]):
                self._update(joint, lr, t, coefficients)
            if at_once and len(joint.p) == len(indices) and joint.on_host():
                self._joints[indices] = joint

    def _counted(self, indices: range) -> Iterator[tuple[int, int]]:
        """The index and new count of each parameter with a gradient, its state started."""
        for index in indices:
            if self.parameters[index].grad is None:
                continue
            self.counts[index] += 1
            if not self.state[index]:
                self._begin_state(index)
            yield index, self.counts[index]

    def begin_states(self) -> None:
        """Make the arrays, as the next step would, of all parameters with a gradient and none."""
        for rule, indices in self.rules():
            for index in indices:
                if self.parameters[index].grad is not None and not self.state[index]:
                    rule._begin_state(index)

    def _begin_state(self, index: int) -> None:
        p = self.parameters[index].data
        with on_device_of(p):
            self.state[index] = self.start(array_namespace(p), p)

    def all_coefficients(self, lr: float, t: int) -> Coefficients:
        """The factor of decoupled weight decay, and the `coefficients` of the rule."""
        return 1 - lr * self.weight_decay, *self.coefficients(lr, t)

    def _update(
        self, joint: Joint, lr: float, t: int, coefficients: Sequence[tuple[Scalar, ...]] | None
    ) -> None:
        """Apply the rule to these parameters."""
        own = self.all_coefficients(lr, t) if coefficients is None else coefficients[joint.first]
        decay, *others = own
        p, g = joint.p, joint.gradients()
        if self.weight_decay:
            g = self.decayed(p, g, decay)
        xp = array_namespace(p[0])
        if self.multi_tensor():
            self.update(xp, p, g, joint.state, *others)
        else:
            self.update(xp, p[0], g[0], joint.states[0], *others)
        joint.changed()

    def decayed(self, p: list[Array], g: list[Array], decay: Scalar) -> list[Array]:
        """The gradients for the rule, after weight decay.

        Parameters
        ----------
        p : list of array
            Parameters, which decoupled decay changes in place.
        g : list of array
            Their gradients.
        decay : float, or 0-d array
            1 - ηλ.
        """
        if self.decoupled_weight_decay:
            rescale(p, decay)
            return g
        decayed: Any = plus_scaled
        return list(decayed(g, self.weight_decay, p))

    def zero_grad(self) -> None:
        """Drop all gradients."""
        for parameter in self.parameters:
            parameter.zero_grad()

    def _check_place(self, index: int, parameter: Parameter) -> None:
        name, data = type(self).__name__, parameter.data
        if not (parameter.grad is None or type(data) is type(parameter.grad) is HostArray):
            what, other = f"parameter {index}", "its gradient is"
            check_beside(name, what, data, other, parameter.grad, "run a backward after moving")
        for array in self.state[index].values():
            if not type(data) is type(array) is HostArray:
                what, other = f"parameter {index}", "the optimizer's state is"
                check_beside(name, what, data, other, array, "make the optimizer after moving")
            if array.dtype != data.dtype:
                msg = (
                    f"{type(self).__name__} has its state in {dtype_name(array.dtype)}, but "
                    f"parameter {index} is now {dtype_name(data.dtype)}; make the optimizer after "
                    "converting"
                )
                raise InputError(msg)

    # --- saving ---

    def state_dict(self) -> dict[str, Any]:
        """Everything that changes with the steps: ``"steps"``, ``"0.count"``, ``"0.velocity"``, …

        Values are ints, and copies of arrays as numpy arrays. Parameters are counted across groups.
        The constructor's arguments (rates, schedules, betas, groups) are not part of it.
        """
        state: dict[str, Any] = {"steps": self.steps}
        for index, arrays in enumerate(self.state):
            state[f"{index}.count"] = self.counts[index]
            state |= {f"{index}.{name}": to_numpy(array).copy() for name, array in arrays.items()}
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the result of `state_dict`, for parameters of the same shapes; all or nothing.

        Raises
        ------
        InputError
            An entry is missing, unknown, malformed, or has another shape.
        """
        keys = ["steps", *(f"{index}.count" for index in range(len(self.parameters)))]
        self._check_keys(set(keys) - set(state), "is missing")
        steps, *counts = (self._count(key, state[key]) for key in keys)
        places = {
            f"{index}.{name}": (index, name)
            for rule, indices in self.rules()
            for index in indices
            if counts[index]
            for name in rule.state_names()
        }
        self._check_keys(places.keys() - set(state), "is missing")
        self._check_keys(set(state) - places.keys() - set(keys), "is unknown")
        loaded: list[State] = [{} for _ in self.parameters]
        for key, (index, name) in places.items():
            data, host = self.parameters[index].data, to_numpy(state[key])
            self._check_keys({key} if host.shape != tuple(data.shape) else (), "has another shape")
            # In the parameter's memory order, as from `start`: kernels differ by it in a rounding.
            with on_device_of(data):
                own = array_namespace(data).zeros_like(data)
                own[...] = backend_of(data).asarray(host.copy(), dtype=data.dtype)
            loaded[index][name] = own
        self.state, self.steps, self.counts = loaded, steps, counts

    def _check_keys(self, wrong: Iterable[Any], what: str) -> None:
        for key in sorted(wrong, key=str):
            msg = f"the state does not fit this {type(self).__name__}: {key!r} {what}"
            raise InputError(msg)

    def _count(self, key: str, value: Any) -> int:
        host = to_numpy(value)
        if host.size != 1 or host.dtype.kind not in "iu" or host.item() < 0:
            self._check_keys((key,), "is not a count")
        return int(host.item())

    def state_names(self) -> tuple[str, ...]:
        """The names of the arrays in a parameter's `state`, which have its shape."""
        return ()
