"""Augmentation: each kind against its definition, equal bits on all backends, recorded steps."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import xbp
from xbp import nn, optim
from xbp.backend import why_unavailable
from xbp.data import Augmentation, Brightness, Compose, Cutout, Flip, Mixup, ShiftedCrop
from xbp.data.augment import upper_quantiles
from xbp.errors import InputError
from xbp.random import RandomStream
from xbp.testing import assert_no_host_sync, emulated_graphs
from xbp.training import Checkpoints, LambdaCallback
from xbp.training.capture import Phase, recordings_of
from xbp.training.interrupt import INTERRUPTED

RNG = np.random.default_rng(0)
N, C, H, W = 9, 3, 7, 6
FLOATS = RNG.normal(size=(N, C, H, W))
BYTES = RNG.integers(0, 256, (N, C, H, W), np.uint8)
Y = np.arange(N) % 4

ALL = {
    "flip": lambda: Flip(0.4),
    "shifted crop": lambda: ShiftedCrop(2),
    "mirrored crop": lambda: ShiftedCrop(3, "reflect"),
    "cutout": lambda: Cutout(5),
    "large cutout": lambda: Cutout(50),
    "brightness": lambda: Brightness(0.7),
    "mixup": lambda: Mixup(4, 0.5),
    "all": lambda: Compose(Flip(), ShiftedCrop(1), Cutout(2), Brightness(), Mixup(4)),
}


@pytest.fixture(params=["numpy", "array_api_strict", "torch", "cupy"])
def place(request: pytest.FixtureRequest) -> Iterator[str]:
    if reason := why_unavailable(request.param):
        pytest.skip(reason)
    with xbp.use_backend(request.param):
        yield request.param


def images(dtype: str) -> Any:
    return BYTES if dtype == "uint8" else FLOATS.astype(dtype)


def words(count: int = 1, seed: int = 0) -> Iterator[np.ndarray]:
    """The draws of the stream for each image, one decision after the other."""
    stream = RandomStream(seed)
    for _ in range(count):
        yield stream.bits((N,), like=FLOATS)


# --- the definitions, image by image -------------------------------------------------------------


def flipped(x: Any) -> Any:
    (bits,) = words()
    return np.stack([i[:, :, ::-1] if b / 2**32 < 0.4 else i for i, b in zip(x, bits, strict=True)])


def shifted(x: Any, p: int, mode: str) -> Any:
    pads = ((0, 0), (p, p), (p, p))
    made = []
    for image, *bits in zip(x, *words(2), strict=True):
        down, right = (int(b) * (2 * p + 1) >> 32 for b in bits)
        padded = np.pad(image, pads, mode="reflect" if mode == "reflect" else "constant")
        made.append(padded[:, down : down + H, right : right + W])
    return np.stack(made)


def cut(x: Any, size: int) -> Any:
    x = x.copy()
    for image, first, second in zip(x, *words(2), strict=True):
        top, left = (int(first) * H >> 32) - size // 2, (int(second) * W >> 32) - size // 2
        image[:, max(0, top) : max(0, top + size), max(0, left) : max(0, left + size)] = 0
    return x


def brightened(x: Any) -> Any:
    (bits,) = words()
    factors = 1 + 0.7 * (2 * bits / 2**32 - 1)
    if x.dtype == np.uint8:
        exact = x * factors.astype("float32").reshape(-1, 1, 1, 1)
        return np.minimum(np.round(exact), 255).astype(np.uint8)
    return x * factors.astype(x.dtype).reshape(-1, 1, 1, 1)


EXACT = {
    "flip": flipped,
    "shifted crop": lambda x: shifted(x, 2, "zeros"),
    "mirrored crop": lambda x: shifted(x, 3, "reflect"),
    "cutout": lambda x: cut(x, 5),
    "large cutout": lambda x: cut(x, 50),
}


@pytest.mark.parametrize("dtype", ["float32", "float64", "uint8"])
@pytest.mark.parametrize("name", EXACT)
def test_pixels_move_as_defined(place: str, name: str, dtype: str) -> None:
    x = images(dtype)
    made, y = ALL[name]()(xbp.asarray(x), xbp.asarray(Y), rng=0)
    np.testing.assert_array_equal(xbp.to_numpy(made), EXACT[name](x))
    assert xbp.to_numpy(made).dtype == x.dtype and xbp.to_numpy(y).tolist() == Y.tolist()


@pytest.mark.parametrize("dtype", ["float32", "float64", "uint8"])
def test_brightness_is_a_factor_an_image(place: str, dtype: str) -> None:
    x = images(dtype)
    made = xbp.to_numpy(Brightness(0.7)(xbp.asarray(x), rng=0)[0])
    assert made.dtype == x.dtype
    # another order of roundings
    tolerance = {"float32": 3e-7, "float64": 1e-15, "uint8": 0}[dtype]
    np.testing.assert_allclose(made, brightened(x), rtol=tolerance)
    assert dtype != "uint8" or made.max() == 255


@pytest.mark.parametrize("dtype", ["float32", "float64", "uint8"])
@pytest.mark.parametrize("labels", ["integers", "shares"])
def test_mixup_blends_images_and_labels_alike(place: str, dtype: str, labels: str) -> None:
    x, shares = images(dtype), np.eye(4)[Y]
    if labels == "shares":
        shares = 0.7 * shares + 0.3 / 4
    given = Y if labels == "integers" else shares
    made, y = (
        xbp.to_numpy(part) for part in Mixup(4, 0.5)(xbp.asarray(x), xbp.asarray(given), rng=0)
    )
    (bits,) = words()
    weights = upper_quantiles(0.5, 4096)[bits >> 20]
    w = weights.reshape(-1, 1, 1, 1)
    blend = w * x.astype("float64") + (1 - w) * x[::-1].astype("float64")
    single = dtype == "uint8" or dtype == "float32"
    # half an integer; else some roundings of numbers up to 4
    tolerance = {"float32": 1e-6, "float64": 4e-15, "uint8": 0.51}[dtype]
    np.testing.assert_allclose(made, blend, rtol=0, atol=tolerance)
    expected = weights[:, None] * shares + (1 - weights)[:, None] * shares[::-1]
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-7 if single else 1e-15)
    assert made.dtype == x.dtype and y.dtype == ("float32" if single else "float64")
    assert (np.argmax(y, axis=1) == Y)[weights > 0.5].all()


@pytest.mark.parametrize("dtype", ["float32", "float64", "uint8"])
@pytest.mark.parametrize("name", ALL)
def test_the_bits_are_those_of_numpy(place: str, name: str, dtype: str) -> None:
    x = images(dtype)
    with xbp.use_backend("numpy"):
        expected = ALL[name]()(x, Y, rng=5)
    given = xbp.asarray(x), xbp.asarray(Y)
    augment = ALL[name]()
    augment(*given, rng=5)  # tables are made
    with assert_no_host_sync():
        made = augment(*given, rng=5)
    for part, wanted in zip(made, expected, strict=True):
        assert xbp.to_numpy(part).tobytes() == np.ascontiguousarray(wanted).tobytes()
    np.testing.assert_array_equal(xbp.to_numpy(given[0]), x)


@pytest.mark.parametrize("name", ALL)
def test_another_step_is_another_draw_and_the_same_step_the_same(name: str) -> None:
    stream, made = RandomStream(3), []
    for step in (0, 1, 0):
        stream.advance(step)
        made.append(ALL[name]()(FLOATS, Y, rng=stream)[0])
    np.testing.assert_array_equal(made[0], made[2])
    if name != "large cutout":
        assert (made[0] != made[1]).any()


def test_a_composition_draws_from_one_stream() -> None:
    stream = RandomStream(1)
    x, y = ShiftedCrop(2)(*Flip()(FLOATS, Y, rng=stream), rng=stream)
    np.testing.assert_array_equal(Compose(Flip(), ShiftedCrop(2))(FLOATS, Y, rng=1)[0], x)
    assert y is Y
    own = Compose(lambda x, y, *, rng: (x + 1, y))(FLOATS, Y, rng=1)
    np.testing.assert_array_equal(own[0], FLOATS + 1)


def test_targets_go_through_a_composition_as_they_are() -> None:
    y = RNG.normal(size=(N, 4))
    assert Compose(Flip(), Cutout(2))(FLOATS, y, rng=1)[1] is y


class Given(RandomStream):
    """A stream that draws these words for the images."""

    def __init__(self, *words: int) -> None:
        super().__init__(0)
        self.words = np.array(words, np.int64)

    def bits(self, shape: tuple[int, ...], *, like: Any = None) -> Any:
        return self.words


def test_words_at_the_seam_between_two_decisions() -> None:
    x = np.arange(4.0).reshape(1, 1, 2, 2).repeat(4, axis=0)
    for p, below, flips in [(0.25, 2**30, [1, 0]), (0.0, 1, [0, 0]), (1.0, 2**32, [1, 1])]:
        last = min(below, 2**32 - 1)
        made = Flip(p)(x, rng=Given(below - 1, last, below - 1, last))[0]
        np.testing.assert_array_equal(made[:, 0, 0, 0], 2 * flips)
    weights = upper_quantiles(0.2, 4096)
    steps = [0, 1, 2049, 4095]
    for offset in (0, 2**20 - 1):  # the first and the last word of each step
        words = Given(*[step * 2**20 + offset for step in steps])
        _, y = Mixup(4)(x, np.arange(4), rng=words)
        np.testing.assert_array_equal(np.diagonal(y), weights[steps])


def test_a_mixup_for_several_places() -> None:
    pytest.importorskip("array_api_strict")
    augment = Mixup(4)
    x, y = augment(FLOATS, Y, rng=0)
    with xbp.use_backend("array_api_strict"):
        there = [xbp.to_numpy(a) for a in augment(xbp.asarray(FLOATS), xbp.asarray(Y), rng=0)]
    again = augment(FLOATS, Y, rng=0)
    for made in (there, again):
        np.testing.assert_array_equal(made[0], x)
        np.testing.assert_array_equal(made[1], y)
    assert len(augment._tables) == 2


def test_every_shift_and_every_centre_comes_equally_often() -> None:
    count = 40_000
    one = np.zeros((count, 1, 5, 5), "float32")
    one[:, 0, 2, 2] = 1
    places = ShiftedCrop(2)(one, rng=0)[0].sum(axis=(0, 1))
    # 25 places, each binomial with p = 1/25: six standard deviations.
    assert abs(places - count / 25).max() < 6 * np.sqrt(count / 25)
    holes = 1 - Cutout(1)(np.ones((count, 1, 5, 5), "float32"), rng=0)[0]
    assert abs(holes.sum(axis=(0, 1)) - count / 25).max() < 6 * np.sqrt(count / 25)
    share = (Flip(0.3)(one * np.arange(5), rng=0)[0] != one * np.arange(5)).any()
    assert not share  # the middle stays the middle


@pytest.mark.parametrize("alpha", [0.1, 0.2, 0.5, 1.0, 3.0])
def test_weights_are_betas_larger_half(alpha: float) -> None:
    stats = pytest.importorskip("scipy.stats")
    q = (np.arange(4096) + 0.5) / 4096
    # P(max(λ, 1 - λ) ≤ v) = 2 F(v) - 1; our table goes from the largest down.
    expected = stats.beta(alpha, alpha).ppf(1 - q / 2)
    np.testing.assert_allclose(upper_quantiles(alpha, 4096), expected, atol=2e-6)


# --- in training ---------------------------------------------------------------------------------


def trainer_of(capture: bool | None = None) -> xbp.Trainer:
    model = nn.Sequential(
        nn.Conv2d(C, 4, 3, rng=0), nn.ReLU(), nn.Dropout(0.2), nn.Flatten(), nn.Linear(80, 4, rng=1)
    )
    optimizer = optim.SGD(model.parameters(), 0.05, momentum=0.9)
    return xbp.Trainer(
        model, nn.CrossEntropyLoss(), optimizer, ["accuracy"], rng=3, capture=capture
    )


def fit(trainer: xbp.Trainer, name: str, **options: Any) -> dict[str, Any]:
    x = np.tile(FLOATS, (3, 1, 1, 1)).astype("float32")
    trainer.fit(
        x, np.tile(Y, 3), **{"epochs": 2, "batch_size": 4, "augment": ALL[name]()} | options
    )
    state = {**trainer.model.state_dict(), **trainer.optimizer.state_dict()}
    return {n: np.asarray(a).tobytes() for n, a in state.items()} | {
        "records": trainer.history.records
    }


@pytest.mark.parametrize("where", ["array_api_strict", "torch", "cupy"])
@pytest.mark.parametrize("name", ALL)
def test_recorded_steps_draw_anew_in_each_replay(where: str, name: str) -> None:
    if reason := why_unavailable(where):
        pytest.skip(reason)
    with xbp.use_backend(where), emulated_graphs():
        eager, fast = trainer_of(False), trainer_of(True)
        assert fit(fast, name) == fit(eager, name)
        recordings = recordings_of(fast._stepper)
        assert recordings is not None and recordings.by_size[4].phase is Phase.REPLAY
        if name == "all":
            assert fit(fast, "flip") == fit(eager, "flip")  # another one, another recording


def test_training_with_it_is_the_loop_by_hand() -> None:
    trainer, augment = trainer_of(), ALL["all"]()
    fit(trainer, "all", epochs=1)
    twin = trainer_of()
    model, loss, optimizer = twin.model, twin.loss, twin.optimizer
    x, y = np.tile(FLOATS, (3, 1, 1, 1)).astype("float32"), np.tile(Y, 3)
    order, stream = xbp.random.permutation(3, 0, 27), RandomStream(3)
    for step in range(7):
        stream.advance(step)
        rows = order[4 * step : 4 * step + 4]
        images, targets = augment(x[rows], y[rows], rng=stream)
        logits, backward = model.forward(images, training=True, rng=stream)
        backward(loss(logits, targets)[1])
        optimizer.step()
        optimizer.zero_grad()
    for name, value in model.state_dict().items():
        np.testing.assert_array_equal(trainer.model.state_dict()[name], value)


def test_a_resumed_run_has_the_same_bits_and_no_other_augmentation(tmp_path) -> None:
    expected = fit(trainer_of(), "all")
    stop = LambdaCallback(
        on_step_end=lambda t, s: t.stop(INTERRUPTED) if t.optimizer.steps == 9 else None
    )
    fit(trainer_of(), "all", callbacks=[stop, Checkpoints(tmp_path, every=1)])
    last = tmp_path / "step-00000009.safetensors"
    assert fit(trainer_of(), "all", resume=last) == expected
    with pytest.raises(InputError, match="the augmentation is"):
        fit(trainer_of(), "flip", resume=last)
    with pytest.raises(InputError, match="the augmentation is not part of both"):
        fit(trainer_of(), "flip", resume=last, augment=None)


# --- wrong input ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Flip(1.5), "p must be a finite number from 0 to 1"),
        (lambda: ShiftedCrop(0), "padding must be an integer of at least 1"),
        (lambda: ShiftedCrop(1, "wrap"), "mode must be one of 'zeros', 'reflect'"),
        (lambda: Cutout(0), "size must be an integer of at least 1"),
        (lambda: Brightness(1.1), "most must be a finite number from 0 to 1"),
        (lambda: Mixup(1), "classes must be an integer of at least 2"),
        (lambda: Mixup(3, 0), "alpha must be a finite number above 0"),
        (lambda: Compose(Flip), r"takes augmentations, such as Flip\(\), or functions"),
        (lambda: Compose(3), r"takes augmentations, such as Flip\(\), or functions"),
        (lambda: Flip()(FLOATS[0]), r"Flip\(p=0\.5\) needs images \(N, C, H, W\), .* of float64"),
        (lambda: Flip()(FLOATS.astype(int)), "floating-point or uint8, got .* of int64"),
        (lambda: Flip()([[1]]), r"needs images \(N, C, H, W\), .* got a list of 1"),
        (lambda: ShiftedCrop(6, "reflect")(FLOATS), "needs images of more than 6 pixels"),
        (lambda: Mixup(4)(FLOATS), r"needs integer labels of shape \(9,\) .* got None"),
        (lambda: Mixup(4)(FLOATS, Y[:3]), r"needs integer labels of shape \(9,\)"),
        (lambda: Mixup(4)(FLOATS, Y / 2), r"needs integer labels of shape \(9,\)"),
        (lambda: Mixup(4)(FLOATS, np.eye(5)[Y]), r"or probabilities of shape \(9, 4\)"),
        (lambda: fit(trainer_of(), "flip", augment=3), "augment must be an augmentation, such as"),
        (lambda: fit(trainer_of(), "flip", augment=Flip), "augment must be an augmentation"),
        (lambda: fit(trainer_of(), "flip", augment=lambda x, y, rng: x), r"must return \(x, y\)"),
        (lambda: fit(trainer_of(), "flip", augment=Mixup(7)), "CrossEntropyLoss"),
    ],
)
def test_wrong_input_is_one_sentence(make: Any, said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_one_that_defines_nothing() -> None:
    with pytest.raises(NotImplementedError, match="Augmentation changes nothing; define images"):
        Augmentation()(FLOATS)


def test_accumulated_parts_are_those_of_the_whole_batch_changed_at_once() -> None:
    """Equal to rounding, as random numbers are drawn for the large batch."""
    x, y = np.tile(FLOATS, (3, 1, 1, 1)), np.tile(Y, 3)
    states = []
    for batch_size, accumulate in ((12, 1), (4, 3)):
        model = nn.Sequential(nn.Flatten(), nn.Linear(C * H * W, 4, dtype="float64", rng=1))
        trainer = xbp.Trainer(
            model, nn.CrossEntropyLoss(), optim.SGD(model.parameters(), 0.05), rng=3
        )
        trainer.fit(x, y, batch_size=batch_size, accumulate=accumulate, augment=ALL["all"]())
        states.append(model.state_dict())
    for name, value in states[0].items():
        np.testing.assert_allclose(states[1][name], value, rtol=1e-12, atol=1e-15)


def test_mixup_refuses_a_share_of_a_batch() -> None:
    stream = RandomStream(0)
    stream.take_share(0, 2, 4)
    with pytest.raises(InputError, match="blends images of a whole batch"):
        Mixup(3)(np.zeros((2, 1, 4, 4), np.float32), np.array([0, 1]), rng=stream)
