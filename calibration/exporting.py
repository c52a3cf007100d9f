"""Exporting: a Screen's reader as ONNX graphs, tried on images before anybody relies on them."""

from __future__ import annotations

import io
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import closing, contextmanager, redirect_stderr, redirect_stdout
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from askance.detectors.bundle import BuildClassifier, Bundle, Engine
from askance.detectors.graph import IMAGES, LAYOUT, LOGITS, GraphReader, Model, flattened, layout_of
from askance.detectors.reader import Reader, TorchReader, in_numbers, slack_of
from askance.detectors.screen import Screen
from askance.errors import BundleError, ExportError, one_line
from askance.judgement.margins import spread

OPSET = 20
TRACED_IMAGES = 3  # of the batch by which it is traced: one, and a multiple, may be told from any number of them
CLOSE = 1e-4  # how far a score may be from torch's, as a share of it and of the spread of clean ones
LARGE = 1024  # bytes of a tensor, from which on it stands apart
ELSEWHERE = "bundle"  # where a model says that they are; whoever opens it gives them
BATCHES = (1, 32, 64)  # that a graph is tried with


class _Reads(nn.Module):
    """What a reader reads, in the order of a graph's outputs."""

    def __init__(self, reader: TorchReader) -> None:
        super().__init__()
        self._reader = reader
        self.classifier = reader.tap.module
        self.detectors = nn.ModuleDict(dict(reader.detectors))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return tuple(flattened(self._reader(images)).values())


class _Classifies(nn.Module):
    def __init__(self, reader: TorchReader) -> None:
        super().__init__()
        self._reader = reader
        self.classifier = reader.tap.module

    def forward(self, images: Tensor) -> Tensor:
        return self._reader.classify(images)


def graphs_of(reader: TorchReader, shape: tuple[int, int, int]) -> tuple[Model, Model]:
    """A reader as two ONNX models: all that it reads, and the logits alone.

    Args:
        reader: on the CPU.
        shape: (C, H, W) of an image.

    Raises:
        ExportError: torch cannot export what the classifier or a detector does; the message is its reason.
    """
    import onnxscript  # noqa: F401 (torch's exporter goes by it: who lacks it is told so before anything else)

    example = torch.rand(TRACED_IMAGES, *shape, generator=torch.Generator().manual_seed(0))
    read = reader(example)
    metadata = {LAYOUT: json.dumps(layout_of(read))}
    return (
        _model(_Reads(reader), example, list(flattened(read)), metadata),
        _model(_Classifies(reader), example, [LOGITS], {}),
    )


def _model(module: nn.Module, example: Tensor, outputs: list[str], metadata: dict[str, str]) -> Model:
    batch = torch.export.Dim("batch", min=2)
    with _quiet():
        try:
            program = torch.onnx.export(
                module.eval(),
                (example,),
                dynamo=True,
                input_names=[IMAGES],
                output_names=outputs,
                dynamic_shapes={"images": {0: batch}},
                opset_version=OPSET,
                verbose=False,
            )
        except Exception as error:
            raise ExportError(one_line(_root(error))) from error
    assert program is not None
    model = program.model
    for node in model.graph.all_nodes():  # where in whose files it was traced
        node.metadata_props.clear()
        node.doc_string = None
    model.metadata_props.clear()
    model.metadata_props.update(metadata)
    return _apart(program.model_proto)


def _apart(proto: Any) -> Model:
    """A model with its large tensors taken out of it."""
    import onnx

    tensors = {}
    for one in proto.graph.initializer:
        if len(one.raw_data) >= LARGE:
            tensors[one.name] = torch.from_numpy(onnx.numpy_helper.to_array(one).copy())
            one.ClearField("raw_data")
            one.data_location = onnx.TensorProto.EXTERNAL
            one.external_data.add(key="location", value=ELSEWHERE)
    return Model(proto.SerializeToString(), tensors)


def _root(error: BaseException) -> BaseException:
    """What it all began with: around it torch tells of its own steps."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what torch and onnxscript report of their own progress, and warn of in code that is not ours."""
    level = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def graph_of(screen: Screen[TorchReader], images: Tensor) -> tuple[Model, Model]:
    """The graphs of a Screen, which judge images as it does: all that it reads, and the logits alone.

    Args:
        screen: on the CPU.
        images: to try them on, [N, C, H, W]; beside them are tried noise, and images of one value.

    Raises:
        ExportError: there is none, or it judges an image otherwise.
    """
    graph, classifier = graphs_of(screen.reader, screen.preprocessing.shape)
    tried = torch.cat([images, _extremes(screen.preprocessing.shape)])
    reader = GraphReader(graph, classifier, list(screen.detectors))
    for size in BATCHES:
        for part in tried.split(size) if size > 1 else tried[-8:].split(1):
            try:
                why = difference(screen, reader, part)
            except Exception as error:  # ONNX Runtime has exceptions of its own, of no common class
                why = one_line(error)
            if why is not None:
                raise ExportError(f"the graph does not compute what torch does: {why}")
    return graph, classifier


def verify_graphs(bundle: Bundle, build: BuildClassifier) -> int:
    """Hold a bundle's graphs against the classifier itself, on its sentinels and on images that nobody has taken.

    Args:
        bundle: opened.
        build: makes the classifier.

    Returns:
        How many images were judged by both.

    Raises:
        BundleError: there is no graph, a part does not fit, or the two judge an image otherwise.
    """
    images = torch.cat([bundle.sentinels().images, _extremes(bundle.manifest.classifier.preprocessing.shape)])
    for single_pass in (False, True) if bundle.manifest.calibration.single_pass else (False,):
        with closing(bundle.screen(build, single_pass=single_pass)) as screen:
            by_graph = bundle.screen_by(Engine.ONNXRUNTIME, build, single_pass=single_pass)
            if (why := difference(screen, by_graph.reader, images)) is not None:
                raise BundleError(f"{bundle.path}: its graph does not compute what torch does here: {why}")
    return len(images)


def difference(screen: Screen, reader: Reader, images: Tensor) -> str | None:
    """What another reader would have a Screen say otherwise of images [B, C, H, W], in words; None where nothing.

    Scores may differ by a ten-thousandth, or as the last bits of what they are made of let them; classes and flags may
    where the last bits decide.
    """
    calibration = screen.calibration
    (logits, readings), (others, other_readings) = screen.reader(images), reader(images)
    one, other = in_numbers(readings, logits), in_numbers(other_readings, others)
    decided = ~screen.undecided(one, readings)
    found = []
    if (one.predicted != other.predicted)[decided].any():
        found.append("another class")
    if not torch.allclose(reader.classify(images), others, equal_nan=True):
        found.append("other logits of the classifier alone")
    tables, judged = {**calibration.tables, **calibration.judged}, calibration.judge(other)
    ends = calibration.ends(one, slack_of(readings))
    for name, (scores, p) in calibration.judge(one).items():
        (low, high), (other_scores, other_p) = ends[name], judged[name]
        off = np.abs(other_scores - scores)
        among = (low <= other_scores) & (other_scores <= high)
        known = np.isfinite(scores)
        if (~among & (off > CLOSE * (np.abs(scores) + spread(tables[name]))) & known).any():
            found.append(f"{name} is off by {off[known & ~among].max():.3g}")
        if not np.array_equal(known, np.isfinite(other_scores)):
            found.append(f"{name} is a number in one alone")
        for level, alpha in calibration.levels.items():
            if ((p <= alpha) != (other_p <= alpha))[decided & known].any():
                found.append(f"{name} is flagged {level} in one alone")
    return found[0] if found else None


def _extremes(shape: tuple[int, int, int]) -> Tensor:
    """Images of one value, of stripes and of noise, [8, C, H, W]."""
    noise = torch.rand(3, *shape, generator=torch.Generator().manual_seed(1))
    stripes = torch.zeros(2, *shape)
    stripes[0, :, ::2], stripes[1, :, :, ::2] = 1, 1
    return torch.cat([torch.stack([torch.full(shape, value) for value in (0.0, 0.5, 1.0)]), stripes, noise])
