import numpy as np
import pytest

import xbp
from xbp import nn, optim
from xbp.testing import assert_no_host_sync


def parameters(seed: int, dtype: str = "float64") -> list[nn.Parameter]:
    """Three parameters; the second has no gradient."""
    rng = np.random.default_rng(seed)
    made = [nn.Parameter(xbp.asarray(np.zeros(s), dtype=dtype)) for s in ((3, 4), (5,), (2,))]
    for parameter in (made[0], made[2]):
        parameter.add_grad(xbp.asarray(rng.normal(size=parameter.shape), dtype=dtype))
    return made


@pytest.mark.parametrize("max_norm", [0.0, 0.5, 1e3])
def test_equals_pytorch(max_norm: float) -> None:
    torch = pytest.importorskip("torch")
    ours = parameters(0)
    theirs = [torch.nn.Parameter(torch.asarray(p.data)) for p in ours]
    for parameter, other in zip(ours, theirs, strict=True):
        other.grad = None if parameter.grad is None else torch.asarray(parameter.grad.copy())
    norm = optim.clip_grad_norm(ours, max_norm)
    expected = torch.nn.utils.clip_grad_norm_(theirs, max_norm)
    # A dozen squares summed in another order.
    assert float(norm) == pytest.approx(expected.item(), rel=1e-14)
    assert ours[1].grad is None
    for index in (0, 2):
        np.testing.assert_allclose(ours[index].grad, theirs[index].grad, rtol=1e-14)


def test_the_norm_of_all_gradients_together_is_max_norm_after_it() -> None:
    clipped = parameters(0)
    optim.clip_grad_norm(clipped, 0.5)
    joined = np.concatenate([p.grad.ravel() for p in clipped if p.grad is not None])
    # PyTorch's 1e-6 in the denominator changes results by a relative 1e-6/‖g‖, and ‖g‖ > 1.
    assert np.linalg.norm(joined) == pytest.approx(0.5, rel=1e-6)


def test_the_norm_and_the_factor_are_those_of_the_definition() -> None:
    """A ‖g‖ as small as 1e-6, and gradients of two dtypes."""
    for scale in (1.0, 1e-6):
        double, single = (nn.Parameter(np.zeros(3, dtype)) for dtype in ("float64", "float32"))
        g = scale * np.array([0.1, 0.2, 0.3])
        double.add_grad(g)
        single.add_grad(g.astype(np.float32))
        kept = np.concatenate([g, g.astype(np.float32)])
        norm = optim.clip_grad_norm([double, single], 1e-7)
        # The float32 part of ‖g‖ is summed in float32: ε of it is 6e-8.
        expected = np.sqrt(np.sum(kept * kept))
        assert norm.dtype == np.float64
        assert float(norm) == pytest.approx(expected, rel=1e-7)
        np.testing.assert_allclose(double.grad, 1e-7 / (expected + 1e-6) * g, rtol=1e-7)
        assert single.grad is not None and single.grad.dtype == np.float32
    alone = parameters(0)
    joined = np.concatenate([p.grad.ravel() for p in alone if p.grad is not None])
    # Fourteen squares summed in another order.
    norm = optim.clip_grad_norm(alone, 1.0)
    assert float(norm) == pytest.approx(float(np.sqrt(joined @ joined)), rel=1e-15)


def test_small_gradients_stay_as_they_are() -> None:
    clipped, before = parameters(0), parameters(0)
    optim.clip_grad_norm(clipped, 1e3)
    assert np.array_equal(clipped[0].grad, before[0].grad)


def test_a_gradient_that_is_a_view_of_something_else_leaves_it_alone() -> None:
    whole, parameter = np.full((2, 3), 9.0), nn.Parameter(np.zeros(3))
    parameter.add_grad(whole[0])
    optim.clip_grad_norm([parameter], 1.0)
    assert (whole == 9).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_does_not_wait_for_the_device(dtype: str) -> None:
    pytest.importorskip("array_api_strict")
    expected = parameters(0, dtype)
    optim.clip_grad_norm(expected, 0.5)
    with xbp.use_backend("array_api_strict"):
        clipped = parameters(0, dtype)
        with assert_no_host_sync():
            norm = optim.clip_grad_norm(clipped, 0.5)
        assert norm.shape == ()
    assert np.array_equal(xbp.to_numpy(clipped[0].grad), expected[0].grad)
    assert xbp.backend.dtype_name(clipped[0].grad.dtype) == dtype


def test_bad_input_gets_one_sentence() -> None:
    with pytest.raises(xbp.errors.InputError, match="no parameter has a gradient"):
        optim.clip_grad_norm([nn.Parameter(np.zeros(2))], 1.0)
    with pytest.raises(xbp.errors.InputError, match=r"max_norm.*-1"):
        optim.clip_grad_norm(parameters(0), -1)


# --- by value -------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [0.0, 0.5, 1e3])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_by_value_equals_pytorch(value: float, dtype: str) -> None:
    torch = pytest.importorskip("torch")
    ours = parameters(0, dtype)
    assert ours[0].grad is not None
    ours[0].grad[0, :2] = np.nan, np.inf
    theirs = [torch.nn.Parameter(torch.asarray(p.data)) for p in ours]
    for parameter, other in zip(ours, theirs, strict=True):
        other.grad = None if parameter.grad is None else torch.asarray(parameter.grad.copy())
    optim.clip_grad_value(ours, value)
    torch.nn.utils.clip_grad_value_(theirs, value)
    assert ours[1].grad is None
    for index in (0, 2):
        assert np.array_equal(ours[index].grad, theirs[index].grad, equal_nan=True)
        assert ours[index].grad.dtype == dtype


@pytest.mark.parametrize("value", [0.0, 0.5])
def test_by_value_is_the_definition_entry_by_entry(value: float) -> None:
    g = [30.0, -40.0, 0.25, -0.25, 0.0, np.inf, -np.inf, np.nan]
    first, second = nn.Parameter(np.zeros(8)), nn.Parameter(np.zeros((2, 4)))
    first.add_grad(np.array(g))
    second.add_grad(-np.reshape(g, (2, 4)))
    optim.clip_grad_value([first, second], value)
    expected = [x if x != x else max(-value, min(x, value)) for x in g]
    np.testing.assert_array_equal(first.grad, expected)
    np.testing.assert_array_equal(second.grad, -np.reshape(expected, (2, 4)))


def test_by_value_leaves_a_view_alone_and_does_not_wait() -> None:
    whole, parameter = np.full((2, 3), 9.0), nn.Parameter(np.zeros(3))
    parameter.add_grad(whole[0])
    optim.clip_grad_value([parameter], 1.0)
    assert (whole == 9).all()
    pytest.importorskip("array_api_strict")
    with xbp.use_backend("array_api_strict"):
        clipped = parameters(0)
        with assert_no_host_sync():
            optim.clip_grad_value(clipped, 0.5)
        assert np.abs(xbp.to_numpy(clipped[0].grad)).max() == 0.5


def test_by_value_bad_input_gets_one_sentence() -> None:
    with pytest.raises(xbp.errors.InputError, match="no parameter has a gradient"):
        optim.clip_grad_value([nn.Parameter(np.zeros(2))], 1.0)
    with pytest.raises(xbp.errors.InputError, match=r"value.*-1"):
        optim.clip_grad_value(parameters(0), -1)
