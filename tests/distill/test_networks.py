"""The named networks against parameter counts worked out by hand and against the same networks written in plain torch functions."""

import copy
import math
import threading

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from distill.errors import InputError
from distill.networks import NAMES, check_name, create, embed, flops, has_batchnorm, initialise, parameter_count, renew
from distill.spec import DataSpec

pytestmark = pytest.mark.plain_layers

SUFFIXES = {
    "depth": ["", "D1", "D2"],
    "width": ["W4", "W8"],
    "activation": ["", "AS", "AR", "AL", "ASwish"],
    "norm": ["", "NN", "BN", "LN", "IN", "GN"],
    "pooling": ["", "NP", "MP", "AP"],
}
SMALLEST = {
    "Linear": 1,
    "MLP": 1,
    "ConvNet": 8,
    "ConvNetBN": 8,
    "ConvNetD1": 2,
    "ConvNetNP": 2,
    "LeNet": 16,
    "AlexNet": 8,
    "AlexNetBN": 8,
    "VGG11": 32,
    "VGG11BN": 32,
    "ResNet18": 9,
    "ResNet18BN": 9,
    "ResNet18_AP": 16,
    "ResNet18BN_AP": 16,
}


def spec_of(channels: int = 3, height: int = 32, width: int = 32, classes: int = 10) -> DataSpec:
    names = tuple(str(c) for c in range(classes))
    return DataSpec("made", channels, height, width, names, (0.0,) * channels, (1.0,) * channels)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=generator(seed))


def conv(inputs: int, outputs: int, side: int, bias: bool = True) -> int:
    return outputs * inputs * side * side + (outputs if bias else 0)


def linear(inputs: int, outputs: int) -> int:
    return outputs * inputs + outputs


def convnet_parameters(channels: int, side: int, classes: int, depth: int = 3, width: int = 128) -> int:
    blocks = conv(channels, width, 3) + (depth - 1) * conv(width, width, 3) + depth * 2 * width
    return blocks + linear(width * (side // 2**depth) ** 2, classes)


def resnet_parameters(channels: int, classes: int, pixels: int) -> int:
    total = conv(channels, 64, 3, bias=False) + 2 * 64
    inputs = 64
    for width in (64, 64, 128, 128, 256, 256, 512, 512):
        total += conv(inputs, width, 3, bias=False) + conv(width, width, 3, bias=False) + 2 * 2 * width
        if inputs != width:
            total += inputs * width + 2 * width
        inputs = width
    return total + linear(512 * pixels, classes)


LENET = conv(3, 6, 5) + conv(6, 16, 5) + linear(400, 120) + linear(120, 84) + linear(84, 10)
ALEXNET = conv(3, 128, 5) + conv(128, 192, 5) + conv(192, 256, 3) + conv(256, 192, 3) + conv(192, 192, 3) + linear(192 * 16, 10)
VGG11_PAIRS = ((3, 64), (64, 128), (128, 256), (256, 256), (256, 512), (512, 512), (512, 512), (512, 512))
VGG11 = sum(conv(i, o, 3) + 2 * o for i, o in VGG11_PAIRS) + linear(512, 10)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ConvNet", 320_010),
        ("ConvNet", convnet_parameters(3, 32, 10)),
        ("ConvNetD1", convnet_parameters(3, 32, 10, depth=1)),
        ("ConvNetD4", convnet_parameters(3, 32, 10, depth=4)),
        ("ConvNetW64", convnet_parameters(3, 32, 10, width=64)),
        ("ConvNetD2W32", convnet_parameters(3, 32, 10, depth=2, width=32)),
        ("ConvNetNN", 320_010 - 3 * 2 * 128),
        ("ConvNetBN", 320_010),
        ("ConvNetGN", 320_010),
        ("ConvNetLN", 320_010 - 3 * 2 * 128 + 2 * 128 * (32 * 32 + 16 * 16 + 8 * 8)),
        ("ConvNetNP", 320_010 - linear(2048, 10) + linear(128 * 32 * 32, 10)),
        ("Linear", linear(3 * 32 * 32, 10)),
        ("MLP", linear(3 * 32 * 32, 128) + linear(128, 128) + linear(128, 10)),
        ("LeNet", LENET),
        ("AlexNet", ALEXNET),
        ("AlexNetBN", ALEXNET + 2 * (128 + 192 + 256 + 192 + 192)),
        ("VGG11", VGG11),
        ("VGG11BN", VGG11),
        ("ResNet18", resnet_parameters(3, 10, 1)),
        ("ResNet18BN", 11_173_962),
        ("ResNet18_AP", resnet_parameters(3, 10, 16)),
        ("ResNet18BN_AP", resnet_parameters(3, 10, 16)),
    ],
)
def test_parameter_counts(name: str, expected: int) -> None:
    assert parameter_count(create(name, spec_of(), generator())) == expected


@pytest.mark.parametrize("name", ["ConvNet", "LeNet", "AlexNet", "VGG11"])
def test_mnist_is_enlarged_to_32_by_padding(name: str) -> None:
    small, large = (create(name, spec_of(1, side, side), generator()) for side in (28, 32))
    assert parameter_count(small) == parameter_count(large)
    digits = normal(2, 1, 28, 28)
    # The kernel's own padding still applies, so zeros around the image give the same result.
    torch.testing.assert_close(small(digits), large(F.pad(digits, (2, 2, 2, 2))), rtol=1e-4, atol=1e-5)
    assert parameter_count(create("ConvNet", spec_of(3, 28, 28), generator())) == convnet_parameters(3, 28, 10)


def test_flops_of_the_papers_network() -> None:
    expected = 2 * (32 * 32 * 128 * 27 + 16 * 16 * 128 * 1152 + 8 * 8 * 128 * 1152 + 2048 * 10)
    network = create("ConvNet", spec_of(), generator())
    assert flops(network, spec_of()) == expected == 101_490_688
    batchnorm = create("ConvNetBN", spec_of(), generator())
    before = copy.deepcopy(batchnorm.state_dict())
    assert flops(batchnorm, spec_of()) == expected
    assert batchnorm.training
    assert all(torch.equal(before[key], value) for key, value in batchnorm.state_dict().items())


@pytest.mark.parametrize("name", ["Linear", "MLP", "LeNet", "AlexNet", "AlexNetBN", "VGG11", "VGG11BN"])
@pytest.mark.parametrize("size", [(3, 32, 32, 10), (1, 33, 47, 2)])
def test_shapes_of_the_fixed_networks(name: str, size: tuple[int, int, int, int]) -> None:
    check_shapes(name, *size)


@pytest.mark.parametrize("name", ["ResNet18", "ResNet18BN", "ResNet18_AP", "ResNet18BN_AP"])
def test_shapes_of_the_residual_networks(name: str) -> None:
    check_shapes(name, 1, 17, 22, 3)


@settings(max_examples=60, deadline=None)
@given(
    st.permutations(list(SUFFIXES)),
    st.fixed_dictionaries({axis: st.sampled_from(values) for axis, values in SUFFIXES.items()}),
    st.integers(1, 4),
    st.integers(1, 40),
    st.integers(1, 40),
    st.integers(1, 12),
)
def test_shapes_of_any_convnet(order: list[str], chosen: dict[str, str], channels: int, height: int, width: int, classes: int) -> None:
    name = "ConvNet" + "".join(chosen[axis] for axis in order)
    depth = int(chosen["depth"][1:] or 3)
    smallest = 2 if chosen["pooling"] == "NP" else 2**depth
    if min(height, width) < smallest:
        with pytest.raises(InputError, match=f"at least {smallest}x{smallest}; data set 'made' has {height}x{width}"):
            create(name, spec_of(channels, height, width, classes), generator())
    else:
        check_shapes(name, channels, height, width, classes)


def check_shapes(name: str, channels: int, height: int, width: int, classes: int) -> None:
    network = create(name, spec_of(channels, height, width, classes), generator())
    images = normal(2, channels, height, width)
    with torch.no_grad():
        features, embedding, logits = network.features(images), network.embed(images), network(images)
        assert torch.equal(logits, network.head(embedding))
        assert torch.equal(network.activations(images)[-1], embedding)
        assert torch.equal(embed(network, images), embedding)
    assert len(features) == 2
    assert features.dim() == (2 if name in ("Linear", "MLP") else 4)
    assert name != "Linear" or torch.equal(embedding, images.flatten(1))
    assert embedding.shape == (2, network.head.in_features)
    assert logits.shape == (2, classes)
    assert torch.isfinite(logits).all()


@pytest.mark.parametrize(("name", "smallest"), SMALLEST.items())
def test_the_smallest_size_works_and_one_less_is_refused(name: str, smallest: int) -> None:
    network = create(name, spec_of(3, smallest, smallest + 1), generator())
    images = normal(1, 3, smallest, smallest + 1).requires_grad_()
    network(images).square().sum().backward()
    # A network that no longer sees its image (a norm over one pixel) would pass every other test.
    assert images.grad is not None
    assert images.grad.abs().sum() > 0
    if smallest > 1:
        with pytest.raises(InputError, match=f"network '{name}' needs images of at least {smallest}x{smallest}; .* use larger images"):
            create(name, spec_of(3, smallest + 1, smallest - 1), generator())


def convnet_by_hand(state: dict[str, Tensor], images: Tensor, depth: int, act: str, norm: str, pool: str) -> list[Tensor]:
    """ConvNet in plain functions; ``state``'s tensors are weight, bias, (norm weight, norm bias) of each block, the head's."""
    tensors = iter([value for key, value in state.items() if "running" not in key and "num_batches" not in key])
    outputs = []
    x = images
    for _ in range(depth):
        x = F.conv2d(x, next(tensors), next(tensors), padding=1)
        n, c, h, w = x.shape
        if norm != "NN":
            weight, bias = next(tensors), next(tensors)
            groups = {"IN": c, "GN": 4}
            if norm == "BN":
                mean, var = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), keepdim=True, unbiased=False)
            elif norm == "LN":
                mean, var = x.mean((1, 2, 3), keepdim=True), x.var((1, 2, 3), keepdim=True, unbiased=False)
            else:
                grouped = x.reshape(n, groups[norm], -1)
                mean, var = grouped.mean(2), grouped.var(2, unbiased=False)
                mean, var = (t.repeat_interleave(c // groups[norm], dim=1)[:, :, None, None] for t in (mean, var))
            if norm != "LN":
                weight, bias = weight[:, None, None], bias[:, None, None]
            x = (x - mean) / (var + 1e-5).sqrt() * weight + bias
        if act == "AR":
            x = x.clamp(min=0)
        elif act == "AL":
            x = torch.where(x > 0, x, 0.01 * x)
        elif act == "AS":
            x = 1 / (1 + torch.exp(-x))
        else:
            x = x / (1 + torch.exp(-x))
        outputs.append(x)
        if pool != "NP":
            h, w = h // 2, w // 2
            cells = x[:, :, : 2 * h, : 2 * w].reshape(n, c, h, 2, w, 2).transpose(3, 4).flatten(4)
            x = cells.mean(4) if pool == "AP" else cells.amax(4)
    x = x.reshape(len(x), -1)
    return [*outputs, x, x @ next(tensors).T + next(tensors)]


@pytest.mark.parametrize("pool", ["NP", "MP", "AP"])
@pytest.mark.parametrize("norm", ["NN", "BN", "LN", "IN", "GN"])
@pytest.mark.parametrize("act", ["AS", "AR", "AL", "ASwish"])
def test_convnet_equals_the_same_network_written_by_hand(act: str, norm: str, pool: str) -> None:
    network = create(f"ConvNetW8{act}D2{norm}{pool}", spec_of(2, 9, 11, 3), generator(1)).double()
    with torch.no_grad():
        for index, parameter in enumerate(network.parameters()):  # norm weights other than one and zero
            parameter.add_(0.3 * normal(*parameter.shape, seed=index).double())
    images = normal(3, 2, 9, 11, seed=2).double()
    expected = convnet_by_hand(network.state_dict(), images, 2, act, norm, pool)
    actual = [*network.activations(images), network(images)]
    assert len(actual) == len(expected)
    for ours, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)


def test_plain_convnet_is_the_default_of_every_axis() -> None:
    plain = create("ConvNet", spec_of(), generator(3))
    spelt = create("ConvNetAPINARW128D3", spec_of(), generator(3))
    images = normal(2, 3, 32, 32)
    assert torch.equal(plain(images), spelt(images))


def resnet_by_hand(state: dict[str, Tensor], images: Tensor, average_pool: bool) -> Tensor:
    tensors = iter(state.values())

    def norm(x: Tensor) -> Tensor:
        return F.instance_norm(x, weight=next(tensors), bias=next(tensors))

    x = F.relu(norm(F.conv2d(images, next(tensors), padding=1)))
    for stride in (1, 1, 2, 1, 2, 1, 2, 1):
        step = 1 if average_pool else stride
        out = F.relu(norm(F.conv2d(x, next(tensors), stride=step, padding=1)))
        out = F.avg_pool2d(out, stride) if average_pool else out
        out = norm(F.conv2d(out, next(tensors), padding=1))
        if stride == 2:
            x = F.conv2d(x, next(tensors), stride=step)
            x = norm(F.avg_pool2d(x, 2) if average_pool else x)
        x = F.relu(out + x)
    x = x.flatten(1) if average_pool else x.mean((2, 3))
    return F.linear(x, next(tensors), next(tensors))


@pytest.mark.parametrize("name", ["ResNet18", "ResNet18_AP"])
def test_resnet_equals_the_same_network_written_by_hand(name: str) -> None:
    # The blocks that double the width are the ones with a stride, except that the first block of all has neither.
    network = create(name, spec_of(3, 16, 24), generator(4))
    images = normal(2, 3, 16, 24, seed=5)
    expected = resnet_by_hand(network.state_dict(), images, name.endswith("_AP"))
    torch.testing.assert_close(network(images), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["VGG11", "AlexNet", "LeNet"])
def test_plain_stacks_equal_the_same_network_written_by_hand(name: str) -> None:
    plan = {"VGG11": "3p3p33p33p33p", "AlexNet": "5p5p333p", "LeNet": "vpvp"}[name]  # kernel sides, p: pool, v: kernel 5 unpadded
    network = create(name, spec_of(3, 32, 40), generator(6))
    x = images = normal(2, 3, 32, 40, seed=7)
    tensors = iter(network.state_dict().values())
    for step in plan:
        if step == "p":
            x = F.max_pool2d(x, 2)
            continue
        x = F.conv2d(x, next(tensors), next(tensors), padding=0 if step == "v" else int(step) // 2)
        x = F.instance_norm(x, weight=next(tensors), bias=next(tensors)) if name == "VGG11" else x
        x = F.relu(x)
    x = x.flatten(1)
    for hidden in range(3 if name == "LeNet" else 1):
        x = F.linear(x if hidden == 0 else F.relu(x), next(tensors), next(tensors))
    assert next(tensors, None) is None
    torch.testing.assert_close(network(images), x, rtol=1e-4, atol=1e-5)


def pytorchs_own(layer: nn.Conv2d | nn.Linear, seed: int) -> nn.Conv2d | nn.Linear:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if isinstance(layer, nn.Conv2d):
            return nn.Conv2d(layer.in_channels, layer.out_channels, layer.kernel_size)
        return nn.Linear(layer.in_features, layer.out_features)


@pytest.mark.parametrize("name", ["ConvNetW8", "ConvNetW8BN", "MLP", "LeNet"])
def test_initialise_has_pytorchs_distribution(name: str) -> None:
    network = create(name, spec_of(), generator())
    for trial in range(3):
        initialise(network, generator(trial))
        for layer in network.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                theirs = pytorchs_own(layer, trial)
                bound = 1 / math.sqrt(theirs.weight[0].numel())
                for ours, other in ((layer.weight, theirs.weight), (layer.bias, theirs.bias)):
                    assert ours.abs().max() <= bound
                    assert other.abs().max() <= bound
                    if ours.numel() > 200:
                        # Four standard errors of a uniform variable's standard deviation and largest of n values.
                        spread = 4 * 0.45 / math.sqrt(ours.numel())
                        assert abs(ours.std().item() / (bound / math.sqrt(3)) - 1) < spread
                        assert abs(other.std().item() / (bound / math.sqrt(3)) - 1) < spread
                        assert ours.abs().max() > bound * (1 - 20 / ours.numel())
            elif isinstance(layer, nn.GroupNorm | nn.BatchNorm2d):
                assert torch.equal(layer.weight, torch.ones_like(layer.weight))
                assert torch.equal(layer.bias, torch.zeros_like(layer.bias))


def test_initialise_resets_running_statistics() -> None:
    network = create("ConvNetBNW4D1", spec_of(), generator())
    network(normal(8, 3, 32, 32) + 5)
    initialise(network, generator())
    fresh = create("ConvNetBNW4D1", spec_of(), generator())
    assert {k for k in fresh.state_dict() if "running" in k}
    assert all(torch.equal(value, fresh.state_dict()[key]) for key, value in network.state_dict().items())


def test_initialise_refuses_layers_it_does_not_know() -> None:
    with pytest.raises(InputError, match="no default initialisation is known for Embedding layers"):
        initialise(nn.Sequential(nn.Embedding(3, 4)), generator())


@pytest.mark.parametrize("name", ["MLP", "ConvNetBN", "LeNet", "AlexNet", "ConvNetLNMP"])
def test_same_seed_same_bits_and_no_global_randomness(name: str) -> None:
    state = torch.get_rng_state()
    one, two, other = (create(name, spec_of(), generator(seed)) for seed in (5, 5, 6))
    shared = generator(5)
    three, four = create(name, spec_of(), shared), create(name, spec_of(), shared)
    renewed = renew(name, other, spec_of(), generator(5))
    assert torch.equal(state, torch.get_rng_state())
    assert renewed is other
    assert same_bits(one, two)
    assert same_bits(one, three)
    assert same_bits(one, renewed)
    assert not same_bits(one, four)


def same_bits(one: nn.Module, two: nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), two.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_renew_works_in_place_and_gives_what_create_gives() -> None:
    network = create("ConvNetW8BN", spec_of(), generator())
    places = [p.data_ptr() for p in network.parameters()]
    network(normal(4, 3, 32, 32)).sum().backward()
    network.requires_grad_(False).eval()
    renewed = renew("ConvNetW8BN", network, spec_of(), generator(1))
    assert renewed is network
    assert [p.data_ptr() for p in renewed.parameters()] == places
    assert renewed.training
    assert all(p.requires_grad and p.grad is None for p in renewed.parameters())
    assert same_bits(renewed, create("ConvNetW8BN", spec_of(), generator(1)))
    # Another name, another data set or no network at all: a new one.
    for name, spec in (("ConvNetW8", spec_of()), ("ConvNetW8BN", spec_of(classes=3))):
        made = renew(name, network, spec, generator(1))
        assert made is not network
        assert same_bits(made, create(name, spec, generator(1)))
    assert same_bits(renew("MLP", None, spec_of(), generator(1)), create("MLP", spec_of(), generator(1)))


class Own(nn.Module):
    def __init__(self, spec: DataSpec) -> None:
        super().__init__()
        self.head = nn.Linear(6, spec.num_classes)
        self.hidden = nn.Linear(spec.channels * spec.height * spec.width, 6)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.hidden(images.flatten(1)).tanh())


def test_own_factory_keeps_its_initialisation_and_the_global_state() -> None:
    def starts_at_seven(spec: DataSpec) -> nn.Module:
        made = Own(spec)
        nn.init.constant_(made.head.bias, 7.0)
        return made

    state = torch.get_rng_state()
    one = create(starts_at_seven, spec_of(), generator(1))
    torch.rand(3)
    moved = torch.get_rng_state()
    two, other = create(starts_at_seven, spec_of(), generator(1)), create(starts_at_seven, spec_of(), generator(2))
    assert torch.equal(moved, torch.get_rng_state())
    assert not torch.equal(moved, state)
    assert torch.equal(one.head.bias, torch.full((10,), 7.0))
    assert same_bits(one, two)
    assert not same_bits(one, other)
    again = renew(starts_at_seven, one, spec_of(), generator(2))
    assert again is not one
    assert same_bits(again, other)


def test_a_factory_that_fails_leaves_the_global_state() -> None:
    def fails(spec: DataSpec) -> nn.Module:
        torch.rand(5)
        raise RuntimeError("out of ideas")

    state = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="out of ideas"):
        create(fails, spec_of(), generator())
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (lambda spec: 3, "the network function returned an object of type int; allowed: a torch.nn.Module."),
        (nn.Linear(2, 2), "network is a Linear; give a name or a function of the data spec: lambda spec: MyNet(...)."),
        (7, "network is an int; give a name or a function of the data spec: lambda spec: MyNet(...)."),
    ],
)
def test_wrong_factories(given: object, message: str) -> None:
    with pytest.raises(InputError) as caught:
        create(given, spec_of(), generator())  # type: ignore[arg-type]
    assert str(caught.value) == message


@pytest.mark.parametrize("factory", ["ConvNetW8BN", Own])
def test_threads_get_the_same_bits(factory: object) -> None:
    made: dict[int, list[nn.Module]] = {0: [], 1: []}
    start = threading.Barrier(2)

    def work(place: int) -> None:
        start.wait()
        made[place] = [create(factory, spec_of(), generator(seed)) for seed in range(15)]  # type: ignore[arg-type]

    threads = [threading.Thread(target=work, args=(place,)) for place in made]
    state = torch.get_rng_state()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert torch.equal(state, torch.get_rng_state())
    assert len(made[0]) == len(made[1]) == 15
    for seed, (one, two) in enumerate(zip(*made.values(), strict=True)):
        assert one is not two
        assert same_bits(one, two)
        assert same_bits(one, create(factory, spec_of(), generator(seed)))  # type: ignore[arg-type]


def test_embed_watches_the_last_linear_layer_of_an_own_module() -> None:
    network = create(Own, spec_of(), generator())
    images = normal(4, 3, 32, 32)
    # `head` is registered first and runs last: what runs last counts.
    assert torch.equal(embed(network, images), network.hidden(images.flatten(1)).tanh())
    assert not any(layer._forward_pre_hooks for layer in network.modules())
    sequence = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Linear(30, 5))
    assert embed(sequence, images).shape == (4, 2 * 30 * 30)
    with pytest.raises(InputError, match=r"Conv2d has no torch\.nn\.Linear layer"):
        embed(nn.Conv2d(3, 2, 3), images)
    with pytest.raises(RuntimeError):
        embed(sequence, normal(4, 3, 9, 9))
    assert not any(layer._forward_pre_hooks for layer in sequence.modules())


def test_has_batchnorm() -> None:
    batchnorm = {name for name in NAMES if "BN" in name}
    assert batchnorm == {"AlexNetBN", "VGG11BN", "ResNet18BN", "ResNet18BN_AP", "ConvNetBN"}
    for name in ("AlexNet", "AlexNetBN", "ResNet18", "ResNet18BN", "ConvNet", "ConvNetBN", "ConvNetIN", "ConvNetNN"):
        assert has_batchnorm(create(name, spec_of(), generator())) == (name in batchnorm)
    assert not has_batchnorm(nn.InstanceNorm2d(3))


@pytest.mark.parametrize("suffix", ["", "BN", "LN", "GN", "NN", "AS", "AL", "ASwish", "MP", "NP"])
def test_second_derivatives(suffix: str) -> None:
    network = create("ConvNetD2W4" + suffix, spec_of(1, 5, 4, 2), generator(8)).double()
    images = normal(2, 1, 5, 4, seed=9).double().requires_grad_()
    with torch.random.fork_rng(devices=[]):  # the checker draws from the global generator
        assert torch.autograd.gradgradcheck(network, (images,))
    # What gradient matching needs: the derivative of a weight gradient with respect to the images, by central differences.
    direction = normal(*images.shape, seed=10).double()
    weight = next(network.parameters())

    def weight_gradient(at: Tensor) -> Tensor:
        loss = F.cross_entropy(network(at), torch.tensor([0, 1]))
        return torch.autograd.grad(loss, weight, create_graph=True)[0].square().sum()

    exact = (torch.autograd.grad(weight_gradient(images), images)[0] * direction).sum()
    step = 1e-6
    measured = (weight_gradient(images + step * direction) - weight_gradient(images - step * direction)) / (2 * step)
    assert abs(exact) > 0
    torch.testing.assert_close(exact, measured, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("name", ["MLP", "LeNet", "AlexNetBN", "VGG11", "ResNet18", "ResNet18BN_AP"])
def test_gradient_matching_can_differentiate_twice_through_the_others(name: str) -> None:
    network = create(name, spec_of(), generator(11))
    images = normal(2, 3, 32, 32, seed=12).requires_grad_()
    loss = F.cross_entropy(network(images), torch.tensor([0, 1]))
    gradients = torch.autograd.grad(loss, list(network.parameters()), create_graph=True)
    (second,) = torch.autograd.grad(sum(g.square().sum() for g in gradients), images)
    assert torch.isfinite(second).all()
    assert second.abs().sum() > 0


def test_every_listed_name_is_known() -> None:
    assert len(set(NAMES)) == len(NAMES)
    for name in NAMES:
        check_name(name)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ConvNett", "network 'ConvNett' is not known; did you mean 'ConvNet'? Allowed: AlexNet, "),
        ("convnet", "network 'convnet' is not known; did you mean 'ConvNet'? Allowed: AlexNet, "),
        ("ConvNetD2X", "network 'ConvNetD2X' is not known; did you mean 'ConvNetD2'? Allowed: "),
        ("ConvNetD2D3", "network 'ConvNetD2D3' gives its depth twice; each of depth, width, activation, norm, pooling at most once."),
        ("ConvNetBNW8IN", "network 'ConvNetBNW8IN' gives its norm twice; each of"),
        ("ConvNetD0", "network 'ConvNetD0' has depth 0; allowed: 1 to 16."),
        ("ConvNetD17", "network 'ConvNetD17' has depth 17; allowed: 1 to 16."),
        ("ConvNetW5000", "network 'ConvNetW5000' has width 5000; allowed: 1 to 4096."),
        ("ConvNetW6GN", "network 'ConvNetW6GN' has 4 norm groups and width 6; use a width that 4 divides."),
        ("ResNet18GN", "network 'ResNet18GN' is not known; did you mean 'ResNet18BN'? Allowed: "),
    ],
)
def test_wrong_names(name: str, message: str) -> None:
    for attempt in (lambda: check_name(name), lambda: create(name, spec_of(), generator())):
        with pytest.raises(InputError) as caught:
            attempt()
        assert str(caught.value).startswith(message)


PIECES = ["D", "W", "A", "N", "P", "B", "L", "I", "G", "M", "S", "R", "0", "1", "9", "wish"]


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=30) | st.lists(st.sampled_from(PIECES)).map(lambda parts: "ConvNet" + "".join(parts)))
def test_any_text_is_a_name_or_an_input_error(text: str) -> None:
    try:
        check_name(text)
    except InputError as error:
        message = str(error)
    else:
        message = ""
        assert text in NAMES or text.startswith("ConvNet")
    assert "\n" not in message


def test_giant_networks_are_refused_before_allocation() -> None:
    with pytest.raises(InputError, match=r"would have [0-9,]+ parameters; at most 2,000,000,000 are allowed"):
        create("ConvNetNPW4096", spec_of(3, 4096, 4096), generator())
