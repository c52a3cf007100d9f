"""The proof of a classifier: what calibration and service rely on, tried on a few images before anything is fitted."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from askance.classifiers.shared_state import left_alone, undone
from askance.detectors.output import parts_of
from askance.errors import AskanceError, ConfigError, one_line
from askance.screening.preprocessing import Preprocessing

PROVED_IMAGES = 4  # seconds, for a large network on a small machine too: thirty images forward, and LARGE_BATCH
LARGE_BATCH, LARGE_SECONDS = 64, 4  # some nets look at their batch only where it is large; this long, at most
TOLERANCE = 1e-3  # of how far logits go: ResNets to Swin moved by 9e-7 of it on a CPU; TF32 rounds at 5e-4
ROUNDING = 1e-4  # of the largest logit of a class: one that is -1e4 for every image rounds coarsely
SQUASHES = {  # what autograd calls the last steps of what returns no logits
    "SigmoidBackward0": "sigmoid",
    "LogSigmoidBackward0": "logsigmoid",
    "SoftmaxBackward0": "softmax",
    "LogSoftmaxBackward0": "log_softmax",
}
PASSED_OVER = {  # what autograd calls steps that leave of a squash what it was, where a constant is all they add
    *("Clamp", "ClampMin", "ClampMax", "View", "UnsafeView", "Reshape", "Squeeze", "Unsqueeze", "Select", "Slice"),
    *("Clone", "ToCopy", "Add", "Sub", "Rsub", "Mul", "Div", "Neg", "Log", "Pow"),
}
REMEDIES = (  # what an exception's text points to, and what to do about it; the first that fits
    (("cuda", "expected all tensors to be on"), "it must run on the CPU: keep .cuda() and devices out of its forward"),
    (("dtype", "scalar type", "half", "double", "bfloat16"), "it must take float32 images: call .float() on it"),
    (
        ("positional argument", "keyword", "required argument"),
        "its forward must take the images as its one argument: wrap it in a module that gives it the others",
    ),
)
ANY_SIZE = "it must take a batch of any size, of one image too"
OTHERWISE = "the preprocessing's channels, height and width must be those that it was made for"


def prove(classifier: nn.Module, preprocessing: Preprocessing, pixels: Tensor, *, gradients: bool) -> Tensor:
    """Prove that a classifier gives each image logits that depend on that image alone.

    Neither the classifier's state nor anybody's random numbers are touched.

    Args:
        classifier: on the CPU, in eval mode.
        preprocessing: in front of it.
        pixels: of some images, float32 [N, C, H, W] in [0, 1]; more than PROVED_IMAGES are not looked at.
        gradients: whether it must have a gradient with respect to its input, as most attacks need.

    Returns:
        The logits of the images that were looked at, float32 [n, K].

    Raises:
        ConfigError: it does not; one line says why, and what to do.
    """
    _prove_module(classifier)
    images = pixels[:PROVED_IMAGES]
    n = len(images)
    # The company that an image may find itself in: a maximum over the batch shows beside a darker or brighter image.
    dimmed, extreme = images[:1] / 2, torch.zeros_like(images[:1])
    extreme[..., ::2] = 1
    batch = torch.cat([images, dimmed, extreme])
    before, unasked = _state(classifier), _copy(classifier)
    try:
        with undone("the classifier"), torch.no_grad():
            began = time.monotonic()
            with left_alone("the classifier"):
                logits = _ask(classifier, preprocessing, batch)
            large = min(LARGE_BATCH, int(LARGE_SECONDS * len(batch) / max(time.monotonic() - began, 1e-6)))
            _prove_still(classifier, before)
            _prove_logits(logits[:n])
            _prove_independence(classifier, preprocessing, batch, logits, large)
            if unasked is not None:
                _prove_forgetful(unasked, preprocessing, batch[-1:], logits[-1:], _allowed(logits))
            _prove_last_step(classifier, preprocessing, images[:1])
            if gradients:
                _prove_gradient(classifier, preprocessing, images[:2])
        _prove_still(classifier, before)
    finally:
        _restore(classifier, before)
    return logits[:n]


def _prove_module(classifier: nn.Module) -> None:
    """What can be seen without asking it: its kind, its mode, and its weights."""
    if isinstance(classifier, torch.jit.ScriptModule):
        raise ConfigError(
            "the classifier is a TorchScript module, whose layers cannot be tapped: give the nn.Module that it was "
            "made of, with its state_dict()"
        )
    for name, module in classifier.named_modules():
        if module.training:
            part = f"its part {name!r}" if name else "it"
            raise ConfigError(
                f"the classifier is in training mode after .eval(): {part} must let nn.Module.train(False) reach it"
            )
    parameters = dict(classifier.named_parameters())
    for name, tensor in [*parameters.items(), *classifier.named_buffers()]:
        if isinstance(tensor, (nn.UninitializedParameter, nn.UninitializedBuffer)):
            raise ConfigError(f"the classifier's {name!r} has no values yet: call the module once, with an image")
        if tensor.layout != torch.strided or tensor.is_quantized:
            kind = tensor.dtype if tensor.is_quantized else tensor.layout
            raise ConfigError(f"the classifier's {name!r} is {kind}: expected dense tensors of floats, .to_dense()")
        if tensor.device.type != "cpu":
            raise ConfigError(
                f"the classifier's {name!r} is on {tensor.device}: calibration wants it on the CPU, .cpu()"
            )
        values = torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor
        if not values.is_floating_point():
            continue
        # Masks are buffers that hold -inf, and are none the worse for it
        bad = values.isnan() | values.isposinf() | (values.isneginf() if name in parameters else values.isnan())
        if bool(bad.any()):
            raise ConfigError(
                f"the classifier's {name!r} holds NaN or infinity ({int(bad.sum())} of {values.numel()} values): its "
                "training went astray, or the file is damaged; expected finite weights"
            )


def _ask(classifier: nn.Module, preprocessing: Preprocessing, pixels: Tensor, otherwise: str = OTHERWISE) -> Tensor:
    """Its logits [B, K], of images [B, C, H, W]; whatever is wrong with them is a ConfigError."""
    with _in_one_line(pixels, otherwise):
        logits = classifier(preprocessing.normalize(pixels))
    b = len(pixels)
    if not isinstance(logits, Tensor):
        raise ConfigError(_more_than_logits(logits, b))
    if logits.is_nested or logits.layout != torch.strided:
        kind = "a nested tensor" if logits.is_nested else f"a tensor of {logits.layout}"
        raise ConfigError(f"the classifier returns {kind}, expected dense logits [{b}, K]")
    if logits.ndim != 2 or len(logits) != b:
        flat = (
            ": a bare .squeeze() drops the batch as well, .flatten(1) does not"
            if b == 1
            else ": one row for each image, one column for each class"
        )
        raise ConfigError(
            f"the classifier returns {list(logits.shape)} for a batch of {b}, expected logits [{b}, K]{flat}"
        )
    if logits.device.type != "cpu":
        raise ConfigError(f"the classifier returns logits on {logits.device}: it must stay where its input is")
    if logits.dtype != torch.float32:
        raise ConfigError(
            f"the classifier returns {logits.dtype}, expected float32 logits: call .float() on it, or on its logits"
        )
    return logits


def _more_than_logits(answer: object, images: int) -> str:
    """What to say of an answer that is no tensor: which parts of it may be the logits."""
    shapes = {
        part: list(value.shape)
        for part, value in parts_of(answer).items()
        if isinstance(value, Tensor) and value.is_floating_point() and value.ndim == 2 and len(value) == images
    }
    said = f"the classifier returns {type(answer).__name__}, expected a tensor of logits [B, K]"
    if not shapes:
        return f"{said}, and no part of it is one: wrap it in a module that returns its logits"
    known = ", ".join(f"{part!r} is {shape}" for part, shape in shapes.items())
    return f"{said}: say which part of it they are, by `output` in [classifier] or askance.calibrate; {known}"


@contextmanager
def _in_one_line(pixels: Tensor, otherwise: str = OTHERWISE) -> Iterator[None]:
    """Whatever a classifier raises, as one line that says what to do, `otherwise` where the error does not tell."""
    try:
        yield
    except AskanceError:
        raise
    except (Exception, SystemExit) as error:
        many = "images" if len(pixels) > 1 else "one image alone"
        said = one_line(error)
        raise ConfigError(
            f"the classifier cannot take {many} of {list(pixels.shape[1:])}: {said}; {_remedy(said.lower(), otherwise)}"
        ) from error


def _remedy(said: str, otherwise: str) -> str:
    return next((remedy for words, remedy in REMEDIES if any(word in said for word in words)), otherwise)


def _prove_logits(logits: Tensor) -> None:
    if logits.shape[1] < 2:
        raise ConfigError(
            f"the classifier returns {logits.shape[1]} logits an image, expected one for each of two or more classes: "
            "where one score says yes or no, [-s / 2, s / 2] are its logits"
        )
    finite = logits.isfinite().all(dim=1)
    if not finite.all():
        raise ConfigError(
            f"the classifier gives NaN or infinity for {int((~finite).sum())} of {len(logits)} images of the fit split:"
            " expected finite logits; check mean and std"
        )
    sums = logits.sum(dim=1)
    if bool((logits >= 0).all()) and torch.allclose(sums, sums[:1], rtol=1e-4):
        one = torch.allclose(sums[:1], torch.ones(1), atol=1e-4)
        if one or not torch.allclose(logits, logits[:1]):  # a constant has equal sums, and is refused as such
            times = "" if one else f" times {float(sums[0]):.4g}"
            raise ConfigError(f"the classifier returns probabilities{times}: it must return logits, before the softmax")
    if torch.allclose(logits.logsumexp(dim=1), torch.zeros(len(logits)), atol=1e-4):
        raise ConfigError("the classifier returns log-probabilities: it must return logits, before the log_softmax")


def _prove_independence(
    classifier: nn.Module, preprocessing: Preprocessing, batch: Tensor, logits: Tensor, large: int
) -> None:
    """Images of the batch have the same logits alone, and with others in any order, in batches of many sizes."""
    b = len(batch)
    some: list[list[int]] = [[0], [1], [b - 2], [b - 2, 1, 0], [1, b - 1]]
    some += [[(size - i) % b for i in range(size)] for size in (4, 5, large)]
    allowed = _allowed(logits)
    for rows in some:
        answer = _ask(classifier, preprocessing, batch[rows], ANY_SIZE)
        if answer.shape[1] != logits.shape[1]:
            raise ConfigError(
                f"the classifier returns {answer.shape[1]} logits an image for a batch of {len(rows)}, "
                f"{logits.shape[1]} for one of {b}: expected one for each class, always"
            )
        moved = _moved(answer, logits[rows])
        if (moved > allowed).any():
            again = [_ask(classifier, preprocessing, batch) for _ in range(2)]
            if not all(torch.allclose(one, logits, rtol=1e-3, atol=1e-4, equal_nan=True) for one in again):
                raise ConfigError(
                    "the classifier answers the same images differently each time: it must not draw at random"
                )
            raise ConfigError(
                f"the classifier's answer to an image depends on the images beside it (a logit moves by "
                f"{float(moved.max()):.2g}, the largest is {_largest(logits):.2g}): {_culprit(classifier)}"
            )


def _prove_forgetful(
    unasked: nn.Module, preprocessing: Preprocessing, image: Tensor, logits: Tensor, allowed: Tensor
) -> None:
    """A copy that has seen no image yet gives this one the same logits: none is kept from the first batch."""
    moved = _moved(_ask(unasked, preprocessing, image, ANY_SIZE), logits)
    if (moved > allowed).any():
        raise ConfigError(
            f"the classifier's answer to an image depends on the images that came before it (a logit moves by "
            f"{float(moved.max()):.2g}): in eval mode it must keep nothing of them, no statistics of its first batch"
        )


def _copy(classifier: nn.Module) -> nn.Module | None:
    try:
        return copy.deepcopy(classifier)
    except Exception:  # what a classifier holds may not be copied; the proof is the poorer for it
        return None


def _moved(answer: Tensor, expected: Tensor) -> Tensor:
    """How far each class's logit moves at most, [K]; an image that was made up here may have no finite answer."""
    told = expected.isfinite().all(dim=1)
    return (answer - expected)[told].abs().nan_to_num(torch.inf).amax(dim=0) if told.any() else torch.zeros(())


def _allowed(logits: Tensor) -> Tensor:
    """How far a class's logit may move, [K].

    It goes by how far logits go from image to image: classes that are masked by -1e9 would allow all others anything.
    """
    told = logits[logits.isfinite().all(dim=1)]
    spread = (told.amax(dim=0) - told.amin(dim=0)).max()
    return TOLERANCE * spread + ROUNDING * told.abs().amax(dim=0)


def _largest(logits: Tensor) -> float:
    return float(logits[logits.isfinite()].abs().max())


def _prove_last_step(classifier: nn.Module, preprocessing: Preprocessing, image: Tensor) -> None:
    """What autograd knows of how the logits came about, where it does: values alone cannot tell a sigmoid's."""
    pixels = image.clone().requires_grad_()
    with torch.enable_grad():
        step = _ask(classifier, preprocessing, pixels).grad_fn
    while step is not None and step.name().partition("Backward")[0] in PASSED_OVER:
        others = [one for one, _ in step.next_functions if one is not None]
        step = others[0] if len(others) == 1 else None
    if step is not None and (squash := SQUASHES.get(step.name())) is not None:
        raise ConfigError(f"the classifier's last step is a {squash}: it must return logits, before the {squash}")


def _culprit(classifier: nn.Module) -> str:
    for name, module in classifier.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None:
            return (
                f"{name!r} is a {type(module).__name__} without running statistics: train it with "
                "track_running_stats=True, or use GroupNorm"
            )
    return "it must treat each image by itself: no statistics, maxima or attention over the batch, no half precision"


def _prove_gradient(classifier: nn.Module, preprocessing: Preprocessing, images: Tensor) -> None:
    remedy = "or configure only attacks that need no gradient (local_search, spsa), and ladder = false"
    pixels = images.clone().requires_grad_()
    with torch.enable_grad():
        logits = _ask(classifier, preprocessing, pixels)
        # Unequal weights: a sum over the logits, or a saturated loss, may have no gradient where each logit has one
        weighted = (logits * torch.arange(1, logits.shape[1] + 1).cos()).sum()
        gradient = None
        if weighted.requires_grad:
            with _in_one_line(pixels):
                (gradient,) = torch.autograd.grad(weighted, pixels, allow_unused=True)
    if gradient is None:
        raise ConfigError(
            "the classifier has no gradient with respect to its input, which attacks need: take no_grad, "
            f"inference_mode, detach, .data and numpy out of its forward, {remedy}"
        )
    if not gradient.isfinite().all():
        raise ConfigError(
            "the classifier's gradient with respect to its input is NaN or infinite, which no attack can follow: look "
            f"for a square root, norm, logarithm or division at 0 in its forward, {remedy}"
        )
    if not gradient.any():
        raise ConfigError(
            "the classifier's gradient with respect to its input is 0 for every image, which no attack can follow: "
            f"take rounding, argmax, sign and comparisons out of its forward, {remedy}"
        )


def _state(classifier: nn.Module) -> dict[str, Tensor]:
    """Copies of all its parameters and buffers, those that no state_dict has included."""
    named = [*classifier.named_parameters(), *classifier.named_buffers()]
    return {name: tensor.detach().clone() for name, tensor in named}


def _prove_still(classifier: nn.Module, before: Mapping[str, Tensor]) -> None:
    now = _state(classifier)
    for name in [*before, *now]:
        same = name in before and name in now and before[name].shape == now[name].shape
        if not same or not torch.equal(before[name], now[name]):
            raise ConfigError(
                f"the classifier changes its {name!r} while it answers: in eval mode it must leave its state as it is"
            )


@torch.no_grad()
def _restore(classifier: nn.Module, before: Mapping[str, Tensor]) -> None:
    for name, tensor in [*classifier.named_parameters(), *classifier.named_buffers()]:
        if name in before and before[name].shape == tensor.shape and not torch.equal(before[name], tensor):
            tensor.copy_(before[name])
