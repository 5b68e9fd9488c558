"""Parameters that one call of an update rule changes, remembered from step to step."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any, TypeAlias

from xbp.backend import Array, HostArray
from xbp.nn.parameter import Parameter, note_changes

State: TypeAlias = "dict[str, Array]"

_data, _grad = map(operator.attrgetter, ("data", "grad"))
_HOST = {HostArray}


class Joint:
    """Parameters of one library, dtype, device and number of updates.

    An array never changes its library and dtype. So where a step finds the same arrays as the step
    before, all on the host, it need not compare them again.

    Parameters
    ----------
    first : int
        The index of the first of them.
    parameters : list of Parameter
    states : list of dict
        The state of each.

    Attributes
    ----------
    p : list of array
    state : dict
        For each name a list of arrays.
    """

    def __init__(self, first: int, parameters: list[Parameter], states: list[State]) -> None:
        self.first, self.parameters, self.states = first, parameters, states
        self.p: list[Array] = list(map(_data, parameters))
        self.state = {name: [state[name] for state in states] for name in states[0]}
        self.arrays = _arrays(parameters, states)

    def gradients(self) -> list[Array]:
        return list(map(_grad, self.parameters))

    def changed(self) -> None:
        """Note that all parameters have been changed."""
        note_changes(self.parameters)

    def on_host(self) -> bool:
        """Whether all arrays, gradients included, are numpy's, which have no device."""
        return {*map(type, self.arrays), *map(type, self.gradients())} == _HOST

    def holds(self, parameters: list[Parameter], states: list[State]) -> bool:
        """Whether these parameters have the same arrays as before, and gradients on the host."""
        found = _arrays(parameters, states)
        return (
            parameters == self.parameters
            and len(found) == len(self.arrays)
            and all(map(operator.is_, found, self.arrays))
            and set(map(type, map(_grad, parameters))) == _HOST
        )


def _arrays(parameters: Sequence[Parameter], states: Sequence[State]) -> list[Any]:
    return [*map(_data, parameters), *chain.from_iterable(map(dict.values, states))]


def joined(
    parameters: Sequence[Parameter],
    states: Sequence[State],
    counted: Iterable[tuple[int, int]],
    at_once: bool,
) -> list[tuple[int, Joint]]:
    """The joints of some parameters, usually one if `at_once`, else one for each; with their count.

    Parameters
    ----------
    parameters, states : sequence
        Of the whole optimizer.
    counted : iterable of (int, int)
        The index and count of each.
    at_once : bool
    """
    # Devices are compared, not hashed, as CuPy's have no hash and are new objects each time.
    alike: list[tuple[tuple[Any, ...], list[int]]] = []
    for index, t in counted:
        p = parameters[index].data
        kind = (t, type(p), p.dtype, p.device)
        for other, those in alike:
            if kind == other and at_once:
                those.append(index)
                break
        else:
            alike.append((kind, [index]))
    return [
        (t, Joint(those[0], [parameters[i] for i in those], [states[i] for i in those]))
        for (t, *_), those in alike
    ]
