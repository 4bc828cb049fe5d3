"""What leaves arrives; what is wrong is refused in one line, before anything of a claimed size is allocated."""

import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from apps.federated.settings import Settings, method_config, upload_form
from apps.federated.tables import UploadConfig
from apps.federated.wire import Limits, decode, decode_weights, encode, encode_weights, parse_npy, upload_bytes, within_range
from distill.condensed import CondensedSet
from distill.decode import Formation, Frequency
from distill.errors import InputError
from distill.networks import create
from distill.randomness import generator
from distill.spec import DataSpec

from .hostile import KINDS, honest, npy, variant

SPEC = DataSpec("toy", 1, 6, 6, tuple("abcde"), (0.4,), (0.3,))
LIMITS = Limits(SPEC, (0, 1, 3), 4)


def made(count: int, seed: int = 0, soft: bool = False, spec: DataSpec = SPEC) -> CondensedSet:
    draws = generator(seed, "made")
    images = torch.randn((count, *spec.shape), generator=draws)
    labels = torch.arange(count) % spec.num_classes
    if soft:
        return CondensedSet(images, torch.softmax(4 * torch.randn((count, spec.num_classes), generator=draws), 1), spec)
    return CondensedSet(images, labels, spec)


def sent(condensed: CondensedSet, pixels: str) -> dict[str, bytes]:
    return {name: npy(array) for name, array in encode(condensed, pixels).items()}


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(["uint8", "float16", "float32"]), st.integers(1, 30), st.booleans(), st.integers(0, 99))
def test_a_set_arrives_as_it_was_to_its_type_s_rounding(pixels: str, count: int, soft: bool, seed: int) -> None:
    before = made(count, seed, soft)
    after = decode(sent(before, pixels), Limits(SPEC, tuple(range(5)), 30, pixels))
    spread = float(before.images.max() - before.images.min())
    allowed = {"uint8": spread / 255 / 2 + 1e-6, "float16": 4e-3, "float32": 0.0}[pixels]
    assert float((after.images - before.images).abs().max()) <= allowed
    if soft:
        assert torch.allclose(after.labels, before.labels, atol=1e-3)
    else:
        assert torch.equal(after.labels, before.labels)


def test_bytes_are_a_quarter_in_uint8_and_labels_are_one_byte() -> None:
    small, whole = (sum(a.nbytes for a in encode(made(20), p).values()) for p in ("uint8", "float32"))
    assert small == 20 * 36 + 20 + 8
    assert whole == 20 * 36 * 4 + 20
    many = DataSpec("many", 1, 2, 2, tuple(map(str, range(300))), (0.5,), (0.5,))
    assert encode(made(5, spec=many))["labels"].dtype == np.uint16


@pytest.mark.parametrize("kind", list(KINDS))
def test_hostile_uploads_are_refused_in_one_line(kind: str) -> None:
    assert len(decode({n: npy(a) for n, a in honest(LIMITS, np.random.default_rng(0)).items()}, LIMITS)) == 12
    for seed in range(100):
        parts = variant(kind, LIMITS, seed)
        with pytest.raises(InputError, match="allowed") as caught:
            decode(parts, LIMITS)
        assert "\n" not in str(caught.value), (kind, seed)
        assert len(str(caught.value)) < 400


def test_no_size_is_believed() -> None:
    parts = variant("lying_header", LIMITS, 3)
    tracemalloc.start()
    with pytest.raises(InputError):
        decode(parts, LIMITS)
    assert tracemalloc.get_traced_memory()[1] < 2_000_000
    tracemalloc.stop()


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes_are_parsed_or_refused(data: bytes) -> None:
    for text in (data, b"\x93NUMPY\x01\x00" + data):
        with pytest.raises(InputError):
            parse_npy(text, "x")


@pytest.mark.parametrize("array", [np.zeros(()), np.float32(3), np.arange(5), np.zeros((0, 3), np.float32), np.ones((2, 3), np.uint8)])
def test_numpy_s_own_plain_arrays_are_read_as_numpy_reads_them(array: np.ndarray) -> None:
    if np.asarray(array).dtype == np.float64:
        with pytest.raises(InputError):
            parse_npy(npy(np.asarray(array)), "x")
    else:
        assert np.array_equal(parse_npy(npy(np.asarray(array)), "x"), array)


def test_pixels_out_of_range_are_clipped_by_the_client_and_refused_by_the_server() -> None:
    wild = made(5)
    wild = CondensedSet(wild.images * 100, wild.labels, SPEC)
    limits = Limits(SPEC, tuple(range(5)), 1, "float32")
    with pytest.raises(InputError, match="lie in"):
        decode(sent(wild, "float32"), limits)
    decode(sent(CondensedSet(within_range(wild), wild.labels, SPEC), "float32"), limits)


def test_weights_come_back_and_wrong_ones_do_not() -> None:
    like = create("ConvNetD1W32", SPEC, generator(0, "w")).state_dict()
    parts = {name: npy(array) for name, array in encode_weights(like).items()}
    back = decode_weights(parts, like)
    assert all(torch.equal(back[name], like[name]) for name in like)
    name = next(iter(like))
    bad = [
        {n: p for n, p in parts.items() if n != name},
        {**parts, "extra": parts[name]},
        {**parts, name: npy(like[name].numpy()[:1])},
        {**parts, name: npy(like[name].double().numpy())},
        {**parts, name: npy(np.full(like[name].shape, np.nan, np.float32))},
        {**parts, name: npy(np.full(like[name].shape, 1e9, np.float32))},
        {**parts, name: b""},
    ]
    for wrong in bad:
        with pytest.raises(InputError):
            decode_weights(wrong, like)


@pytest.mark.parametrize(
    ("form", "pixels"), [(Formation(2), "uint8"), (Formation(2), "float16"), (Frequency(7), "float32"), (Frequency(7), "float16")]
)
def test_stored_rows_travel_and_are_decoded_by_the_settings_of_the_run(form: Formation | Frequency, pixels: str) -> None:
    rows = torch.randn((6, *form.stored_shape(SPEC)), generator=generator(1, "rows"))
    before = CondensedSet(rows, torch.arange(6) % 3, SPEC, decode=form)
    limits = Limits(SPEC, tuple(range(5)), 2, pixels, form)
    parts = sent(before, pixels)
    assert set(parts) == {"images", "labels"} | ({"grid"} if pixels == "uint8" else set()), "nothing names the form"
    after = decode(parts, limits)
    assert after.decode == form
    assert float((after.images - rows).abs().max()) < (0.02 if pixels == "uint8" else 4e-3)
    assert sum(map(len, parts.values())) <= upload_bytes(limits)
    with pytest.raises(InputError, match=r"images are .* allowed: "):
        decode(parts, Limits(SPEC, tuple(range(5)), 2, pixels, Frequency(8)))
    far = {**parts, "images": npy(np.full((6, *form.stored_shape(SPEC)), 1e4, np.float16))} if pixels == "float16" else None
    if far is not None:
        with pytest.raises(InputError, match=r"images lie in .* allowed: .* \(normalised\)"):
            decode(far, limits)


def test_frequency_rows_are_no_bytes() -> None:
    before = CondensedSet(torch.zeros((1, 1, 7)), torch.tensor([0]), SPEC, decode=Frequency(7))
    with pytest.raises(InputError, match=r'frequency rows are no pixels and cannot be uploaded as uint8; take pixels = "float16"'):
        encode(before, "uint8")


@pytest.mark.parametrize("networks", ["received", "fresh"])
def test_a_clients_pool_takes_the_place_of_the_ball(networks: str) -> None:
    upload = {"networks": networks, "settings": {"pool": "blend", "decode": "formation:2"}}
    config = method_config(Settings(upload=UploadConfig(**upload)))
    assert (config.radius, config.pool) == (None, "blend")
    assert upload_form(Settings(upload=UploadConfig(**upload))) == Formation(2)
    assert method_config(Settings()).radius == 5.0
