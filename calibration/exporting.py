"""Exporting: a Screen's reader as ONNX graphs, tried on images before anybody relies on them."""

from __future__ import annotations

import io
import json
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from onnx_ir.passes import Sequential, common
from torch import Tensor, nn

from askance.calibration.pulling import pull_back
from askance.detectors.comparison import difference, extremes
from askance.detectors.reader import TorchReader, read_all, together
from askance.detectors.tap import Tap
from askance.errors import ExportError, extra_needed, one_line
from askance.screening.bundle import ALONE
from askance.screening.graph import IMAGES, LAYOUT, LOGITS, PARTS, GraphReader, Model, layout_of, output_names
from askance.screening.images import Pixels
from askance.screening.reading import Numbers
from askance.screening.screen import Screen

logger = logging.getLogger(__name__)

OPSET = 20
TRACED_IMAGES = 3  # of the batch by which it is traced: one, and a multiple, may be told from any number of them
LARGE = 1024  # bytes of a tensor, from which on it stands apart
ELSEWHERE = "bundle"  # where a model says that they are; whoever opens it gives them
BATCHES = (1, 32, 64)  # that a graph is tried with
_TIDY = Sequential(
    common.InlinePass(),
    common.RemoveUnusedNodesPass(),
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
    common.DeduplicateInitializersPass(),
    common.CommonSubexpressionEliminationPass(),
    common.OutputFixPass(),
    common.NameFixPass(),
    common.ClearMetadataAndDocStringPass(),  # where in whose files it was traced
    common.RemoveUnusedOpsetsPass(),
)


class _Reads(nn.Module):
    """What a reader reads, in the order of a graph's outputs.

    Views are a call of their own: what is read without them is then a part of the same graph.
    """

    def __init__(self, reader: TorchReader) -> None:
        super().__init__()
        tap, self._detectors = reader.tap, reader.detectors
        self._views = tap.views
        self._plain = Tap(tap.module, tap.layers, tap.preprocess)
        self._of_views = Tap(tap.module, sorted(tap.view_layers), tap.preprocess)
        self.classifier = tap.module
        self.detectors = nn.ModuleDict(dict(reader.detectors))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        capture = self._plain(images)
        if self._views is not None:
            capture = replace(capture, views=self._of_views(self._views(images).flatten(0, 1)))
        readings = read_all(self._detectors, capture)
        named = {LOGITS: capture.logits}
        for kind, one in readings.items():
            named |= {f"{kind}/{part}": getattr(one, part) for part in PARTS}
            named[f"{kind}/components"] = together(one.components)
            named |= {f"{kind}/evidence/{name}": values for name, values in one.evidence.items()}
        return tuple(named[name] for name in output_names(layout_of(readings)))

    def close(self) -> None:
        self._plain.close()
        self._of_views.close()


def graphs_of(screens: Mapping[str, Screen[TorchReader]], images: Pixels) -> dict[str, Model]:
    """The graphs of Screens of one classifier, tried on images: each judges them as its Screen does.

    Args:
        screens: on the CPU, by name; the first has all detectors of the others.
        images: to try them on, [N, C, H, W]; beside them are tried noise, and images of one value.

    Returns:
        Of each Screen all that it reads; and under `ALONE` the logits, of which all answer.

    Raises:
        ExportError: torch cannot export what the classifier or a detector does, or the graph judges an image
            otherwise; the message is the reason.
    """
    try:
        import onnxscript  # noqa: F401 (torch's exporter goes by it)
    except ModuleNotFoundError:  # no reason to lose a calibration
        raise ExportError(extra_needed("onnxscript", "calibration")) from None
    widest = next(iter(screens.values()))
    shape = widest.preprocessing.shape
    example = torch.rand(TRACED_IMAGES, *shape, generator=torch.Generator().manual_seed(0))
    readings = widest.reader(example.numpy()).readings
    whole = _exported(widest.reader, example, output_names(layout_of(readings)))
    tried = np.concatenate([images, extremes(shape)])
    plain = whole.clone()
    if pull_back(whole):
        try:
            return _parts(whole, readings, screens, tried)
        except ExportError as error:  # rather slower than otherwise
            logger.info("rows are not pulled back: %s", error)
    return _parts(plain, readings, screens, tried)


def _parts(
    whole: ir.Model, readings: Mapping[str, Numbers], screens: Mapping[str, Screen[TorchReader]], tried: Pixels
) -> dict[str, Model]:
    """The graphs of Screens, which are parts of one model, once they are tried."""
    models = {ALONE: _part(whole, [LOGITS], {})}
    for name, screen in screens.items():
        layout = layout_of({kind: readings[kind] for kind in screen.detectors})
        models[name] = _part(whole, output_names(layout), {LAYOUT: json.dumps(layout)})
        reader = GraphReader(models[name], models[ALONE], list(screen.detectors), torch.get_num_threads())
        _require_the_same(screen, reader, tried)
    return models


def _exported(reader: TorchReader, example: Tensor, outputs: list[str]) -> ir.Model:
    """All that a reader reads as a model of onnx_ir, with nothing in it of where it was made."""
    from onnxscript.optimizer import optimize_ir

    batch = torch.export.Dim("batch", min=2)
    with _quiet(), closing(_Reads(reader)) as module:
        try:
            program = torch.onnx.export(
                module.eval(),
                (example,),
                dynamo=True,
                input_names=[IMAGES],
                dynamic_shapes={"images": {0: batch}},
                opset_version=OPSET,
                optimize=False,  # below, but for what would be in the bundle twice
                verbose=False,
            )
            assert program is not None
            optimize_ir(program.model, input_size_limit=LARGE, output_size_limit=LARGE, should_fold=_may_fold)
            model = _TIDY(program.model).model
        except Exception as error:
            raise ExportError(one_line(_root(error))) from error
    for output, name in zip(model.graph.outputs, outputs, strict=True):
        output.name = name
    return model


def _may_fold(node: ir.Node) -> bool | None:
    """Not a transposition of what is in the bundle as it is: it would be there twice. Otherwise as is usual."""
    return False if node.op_type == "Transpose" else None


def _part(whole: ir.Model, outputs: Sequence[str], metadata: Mapping[str, str]) -> Model:
    """As much of a model as some of its outputs take."""
    model = whole.clone()
    wanted = [output for output in model.graph.outputs if output.name in outputs]
    model.graph.outputs.clear()
    model.graph.outputs.extend(wanted)
    model.metadata_props.update(metadata)
    return _apart(ir.to_proto(common.RemoveUnusedNodesPass()(model).model))


def _apart(proto: Any) -> Model:
    """A model with its large tensors taken out of it."""
    import onnx

    tensors = {}
    for one in proto.graph.initializer:
        if len(one.raw_data) >= LARGE:
            tensors[one.name] = onnx.numpy_helper.to_array(one).copy()
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


def _require_the_same(screen: Screen, reader: GraphReader, images: Pixels) -> None:
    """Raise ExportError where a graph would have its Screen judge one of the images otherwise."""
    for size in BATCHES:
        some = images if size > 1 else images[-8:]
        for part in (some[at : at + size] for at in range(0, len(some), size)):
            try:
                why = difference(screen, reader, part)
            except Exception as error:  # ONNX Runtime has exceptions of its own, of no common class
                why = one_line(error)
            if why is not None:
                raise ExportError(f"the graph does not compute what torch does: {why}")
