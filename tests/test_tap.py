"""Tap and Capture: one forward pass under hooks, safe among threads, the user's module left as it was."""

from __future__ import annotations

import copy
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn

from askance.detectors import Capture, Tap
from askance.errors import LayerError


class Net(nn.Module):
    """In-place ReLUs right after every tapped layer, a layer that never runs, one that runs twice, odd outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.fc1 = nn.Linear(4 * 16, 8)
        self.relu1 = nn.ReLU(inplace=True)
        self.fc2 = nn.Linear(8, 3)
        self.unused = nn.Linear(2, 2)
        self.twice = nn.Identity()
        self.pair = Pair()
        self.summed = Summed()

    def forward(self, images: Tensor) -> Tensor:
        maps = self.relu(self.conv(images))
        hidden = self.fc1(maps.flatten(1))
        hidden += 0.0
        hidden = self.twice(self.twice(self.relu1(hidden)))
        self.pair(hidden)
        self.summed(hidden)
        logits: Tensor = self.fc2(hidden)
        return logits


class Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


class Summed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.sum(dim=0, keepdim=True).expand(x.shape[0] + 1, -1)


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net().eval()


def images(count: int, seed: int = 0) -> Tensor:
    return torch.rand(count, 1, 4, 4, generator=torch.Generator().manual_seed(seed))


def hooks(module: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in module.modules())


def test_capture_is_what_the_layers_give(net: Net) -> None:
    x = images(5)
    with torch.no_grad(), Tap(net, ["conv", "fc1", "fc2"]) as tap:
        capture = tap(x, labels=torch.tensor([0, 1, 2, 0, 1]))
        conv = net.conv(x)
        fc1 = net.fc1(conv.relu().flatten(1))
        logits = net.fc2(fc1.relu())
    assert list(capture.activations) == ["conv", "fc1", "fc2"]
    torch.testing.assert_close(capture.activations["conv"], conv)
    torch.testing.assert_close(capture.activations["fc1"], fc1)
    torch.testing.assert_close(capture.logits, logits)
    assert torch.equal(capture.activations["fc2"], capture.logits)
    assert torch.equal(capture.predicted, logits.argmax(dim=1))
    assert capture.labels is not None
    assert capture.labels.tolist() == [0, 1, 2, 0, 1]
    assert len(capture) == 5


def test_in_place_operations_after_the_layer_do_not_reach_the_capture(net: Net) -> None:
    with torch.no_grad(), Tap(net, ["conv", "fc1"]) as tap:
        capture = tap(images(3))
    for layer in ("conv", "fc1"):
        assert bool((capture.activations[layer] < 0).any()), f"{layer} was overwritten by the ReLU after it"


def test_preprocessing_happens_inside(net: Net) -> None:
    x = images(2)
    with torch.no_grad(), Tap(net, ["conv"], preprocess=lambda pixels: (pixels - 0.5) / 0.25) as tap:
        torch.testing.assert_close(tap(x).activations["conv"], net.conv((x - 0.5) / 0.25))


def test_capture_flat_and_select() -> None:
    capture = Capture(
        torch.tensor([[1.0, 2.0], [4.0, 3.0], [0.0, 9.0]]),
        {"maps": torch.arange(24.0).view(3, 2, 2, 2), "dense": torch.arange(6.0).view(3, 2)},
        torch.tensor([1, 1, 0]),
    )
    assert capture.flat("maps").shape == (3, 8)
    assert torch.equal(capture.flat("maps")[1], torch.arange(8.0, 16.0))
    for index in (torch.tensor([2, 0]), torch.tensor([True, False, True])):
        part = capture.select(index)
        rows = [2, 0] if index.dtype == torch.long else [0, 2]
        assert torch.equal(part.logits, capture.logits[rows])
        assert torch.equal(part.flat("dense"), capture.flat("dense")[rows])
        assert part.labels is not None
        assert part.labels.tolist() == [[1, 1, 0][row] for row in rows]
    assert capture.predicted.tolist() == [1, 0, 1]
    with pytest.raises(LayerError, match=r"layer 'mapz' was not tapped: did you mean 'maps'\? known: maps, dense"):
        capture.flat("mapz")


def test_gradient_mode_is_the_callers(net: Net) -> None:
    x = images(2).requires_grad_(True)
    with Tap(net, ["conv"]) as tap:
        (gradient,) = torch.autograd.grad(tap(x).activations["conv"].sum(), x)
        assert gradient.shape == x.shape
        assert bool(gradient.any())
        with torch.no_grad():
            assert not tap(x).activations["conv"].requires_grad


def test_closing_leaves_the_module_as_it_was(net: Net) -> None:
    before, state = net(images(4)).detach(), copy.deepcopy(net.state_dict())
    attributes = set(vars(net))
    tap = Tap(net, ["conv", "fc1", "fc2"])
    assert hooks(net) == 3
    with torch.no_grad():
        tap(images(4))
    tap.close()
    tap.close()
    assert hooks(net) == 0
    assert set(vars(net)) == attributes
    assert net.state_dict().keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in net.state_dict().items())
    assert torch.equal(net(images(4)).detach(), before)
    with pytest.raises(LayerError, match="this Tap is closed: open a new one"):
        tap(images(1))


def test_hooks_go_when_the_block_fails(net: Net) -> None:
    with pytest.raises(RuntimeError, match="mine"), Tap(net, ["conv"]):
        raise RuntimeError("mine")
    assert hooks(net) == 0


def test_users_own_hooks_and_passes_are_left_alone(net: Net) -> None:
    calls: list[int] = []
    handle = net.conv.register_forward_hook(lambda module, inputs, output: calls.append(1))
    with torch.no_grad(), Tap(net, ["conv", "fc1"]) as tap:
        net(images(1))
        net(images(1))  # twice, outside the Tap: nothing is recorded, nothing is ambiguous
        first = tap(images(2, seed=1))
    assert len(calls) == 3
    assert first.activations["conv"].shape[0] == 2
    assert hooks(net) == 1
    handle.remove()


def test_a_layer_named_twice_is_tapped_once(net: Net) -> None:
    with torch.no_grad(), Tap(net, ["fc1", "conv", "fc1"]) as tap:
        assert tap.layers == ("fc1", "conv")
        assert hooks(net) == 2
        assert list(tap(images(1)).activations) == ["fc1", "conv"]


@pytest.mark.parametrize(
    ("layer", "text"),
    [
        ("unused", "layer 'unused' never ran in the forward pass: tap a layer that does"),
        ("twice", "layer 'twice' runs more than once in a forward pass, so its activation is ambiguous"),
        ("pair", "layer 'pair' returns tuple, not a tensor: tap one of its submodules"),
        ("summed", r"layer 'summed' gives \[3, 8\] for a batch of 2: expected \[B, \.\.\.\]"),
    ],
)
def test_layers_that_give_no_activation(net: Net, layer: str, text: str) -> None:
    with torch.no_grad(), Tap(net, ["conv", layer]) as tap:
        for _ in range(2):  # a failure leaves nothing behind: the second call fails the same way
            with pytest.raises(LayerError, match=text):
                tap(images(2))
        net(images(2))  # and the module still works


@pytest.mark.parametrize("layer", ["conv7", "", "Conv"])
def test_unknown_layers_are_named(net: Net, layer: str) -> None:
    with pytest.raises(LayerError, match=f"the classifier has no layer '{layer}': .*known: conv, relu, fc1") as caught:
        Tap(net, ["fc1", layer])
    assert ("did you mean 'conv'?" in str(caught.value)) == (layer in ("conv7", "Conv"))
    assert hooks(net) == 0


def test_what_a_classifier_must_be(net: Net) -> None:
    with (
        pytest.raises(LayerError, match=r"training mode: call \.eval\(\) on it first"),
        Tap(net.train(), ["conv"]) as tap,
    ):
        tap(images(1))
    headless = nn.Sequential(nn.Flatten(0))
    with pytest.raises(LayerError, match=r"logits \[B, K\]; for B = 2 it gave \[32\]"), Tap(headless.eval(), []) as tap:
        tap(images(2))
    tuples = nn.Sequential(Pair())
    with pytest.raises(LayerError, match=r"logits \[B, K\]; for B = 2 it gave tuple"), Tap(tuples.eval(), []) as tap:
        tap(images(2))


def test_an_error_in_the_classifier_leaves_the_tap_usable(net: Net) -> None:
    with torch.no_grad(), Tap(net, ["conv", "fc1"]) as tap:
        with pytest.raises(RuntimeError):
            tap(torch.rand(2, 1, 5, 5))  # fails after conv ran
        assert tap(images(2)).activations["conv"].shape == (2, 4, 4, 4)


def test_eight_threads_through_one_tap_never_mix_captures(net: Net) -> None:
    threads, rounds, batch = 8, 60, 3
    start = threading.Barrier(threads)
    with Tap(net, ["conv", "fc1", "fc2"]) as tap, Tap(net, ["conv"]) as bystander:

        def work(worker: int) -> int:
            wrong = 0
            start.wait()
            with torch.no_grad():
                for i in range(rounds):
                    x = images(batch, seed=1000 * worker + i)
                    capture = tap(x)
                    conv = nn.functional.conv2d(x, net.conv.weight, net.conv.bias, padding=1)
                    fc1 = nn.functional.linear(conv.relu().flatten(1), net.fc1.weight, net.fc1.bias)
                    logits = nn.functional.linear(fc1.relu(), net.fc2.weight, net.fc2.bias)
                    wrong += not all(
                        torch.allclose(seen, expected, atol=1e-6)
                        for seen, expected in (
                            (capture.activations["conv"], conv),
                            (capture.activations["fc1"], fc1),
                            (capture.logits, logits),
                            (bystander(x).activations["conv"], conv),
                        )
                    )
            return wrong

        with ThreadPoolExecutor(threads) as pool:
            assert sum(pool.map(work, range(threads))) == 0
    assert hooks(net) == 0
