"""The short list of a large library: what it finds beside a look at every row, and that a graph holds it."""

from __future__ import annotations

import copy
from contextlib import closing
from itertools import pairwise

import numpy as np
import pytest
import torch
from safetensors.torch import save
from torch import Tensor
from toy import NAMES, Trained

from askance.answers import FUSED
from askance.calibration.exporting import graphs_of
from askance.detectors import Detector, LibraryNetwork, LibraryNetworkOptions, Screen, short_list
from askance.detectors.comparison import difference
from askance.detectors.library import Library, activation_pattern
from askance.detectors.reader import TorchReader, read
from askance.detectors.short_list import ShortList
from askance.judgement import Calibration
from askance.screening.bundle import ALONE
from askance.screening.graph import GraphReader

WIDTH, COUNT = 640, 4


@pytest.fixture(autouse=True)
def _smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(short_list, "LARGE", 3000 * WIDTH)


@pytest.fixture
def _in_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(short_list, "LONG", 2000)
    monkeypatch.setattr(short_list, "GATHERED", 8)  # so few rows are not worth it


@pytest.fixture(params=[False, True], ids=["all at once", "in cells"])
def _either(request: pytest.FixtureRequest) -> None:
    if request.param:
        request.getfixturevalue("_in_cells")


def patterns(count: int, seed: int, latent: int = 6) -> Tensor:
    """Of few dimensions and a little noise, as activations are."""
    generator = torch.Generator().manual_seed(seed)
    basis = torch.randn(latent, WIDTH, generator=torch.Generator().manual_seed(0))
    values = torch.randn(count, latent, generator=generator) @ basis
    return activation_pattern(values.relu() + 0.05 * torch.randn(count, WIDTH, generator=generator))


@pytest.fixture
def library() -> Library:
    made = Library(0.9)
    made.rows = patterns(6000, 1)
    made.connections = torch.randn(6000, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return made


@pytest.mark.usefixtures("_either")
def test_it_finds_what_a_look_at_every_row_finds(library: Library) -> None:
    new = 3 * patterns(400, 2)  # the length plays no part
    values, rows = library.nearest(new, COUNT)
    library.short_list = ShortList.of(library.rows, patterns(400, 3), COUNT)
    assert len(library.short_list) == short_list.DIMENSIONS
    short_values, short_rows = library.nearest(new, COUNT)
    assert (rows.unsqueeze(2) == short_rows.unsqueeze(1)).any(dim=2).double().mean() >= 0.98
    same = (rows == short_rows).all(dim=1)
    assert same.double().mean() > 0.9
    torch.testing.assert_close(short_values[same], values[same], rtol=0, atol=2e-6)
    assert (short_values <= values + 2e-6).all()
    assert (short_values.diff(dim=1) <= 0).all()


@pytest.mark.usefixtures("_in_cells")
def test_it_looks_at_few_numbers(library: Library) -> None:
    made = ShortList.of(library.rows, patterns(400, 3), COUNT)
    looked_at, listed = made.effort.tolist()
    gathered = looked_at * made.cells.shape[1] * short_list.DIMENSIONS + listed * WIDTH
    numbers = made.axes.numel() + made.centres.numel() + short_list.GATHERED * gathered
    assert short_list.WORTH * numbers <= library.rows.numel()
    assert made.recall(library.rows, patterns(400, 3), COUNT) >= short_list.RECALL


@pytest.mark.parametrize("width", [1400, 1600], ids=["of no use", "worth it"])
def test_all_at_once_it_turns_a_pattern_and_looks_at_few_dimensions(
    width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1,100 rows, 8 of which are compared in full: a third of the time from 1,509 numbers a row on."""
    monkeypatch.setattr(short_list, "LARGE", 1100 * 1400)
    basis = torch.randn(8, width, generator=torch.Generator().manual_seed(0))

    def wide(count: int, seed: int) -> Tensor:
        return activation_pattern(torch.randn(count, 8, generator=torch.Generator().manual_seed(seed)) @ basis)

    made = ShortList.of(wide(1100, 1), wide(300, 2), COUNT)
    worth = 3 * (64 * width + 64 * 1100 + 32 * 8 * width) <= 1100 * width
    assert worth == (width == 1600)
    assert made.effort.tolist() == ([0, 8] if worth else [])
    assert made.cells.numel() == 0


@pytest.mark.usefixtures("_in_cells")
def test_every_row_stands_in_one_cell_that_holds_enough(library: Library) -> None:
    cells = ShortList.of(library.rows, patterns(400, 3), COUNT).cells
    assert cells[cells >= 0].sort().values.tolist() == list(range(6000))
    sizes = (cells >= 0).sum(dim=1)
    assert sizes.min() >= COUNT
    assert sizes.max() <= short_list.FULLEST * 6000 / round(2 * 6000**0.5)


@pytest.mark.usefixtures("_in_cells")
def test_recall_is_the_share_that_is_found(library: Library) -> None:
    made = ShortList.of(library.rows, patterns(400, 3), COUNT)
    made.effort = torch.tensor([1, 4])
    made.settle()
    new = patterns(50, 4)
    every = [set(row) for row in (new @ library.rows.T).topk(COUNT, dim=1).indices.tolist()]
    found = [set(row) for row in made(new, library.rows, COUNT)[1].tolist()]
    by_hand = np.mean([len(one & other) / COUNT for one, other in zip(every, found, strict=True)])
    assert made.recall(library.rows, new, COUNT) == pytest.approx(by_hand)
    assert 0 < by_hand < 0.95


@pytest.mark.usefixtures("_in_cells")
def test_more_effort_finds_more(library: Library) -> None:
    made = ShortList.of(library.rows, patterns(400, 3), COUNT)
    recalls = []
    for effort in ((1, 8), (4, 32), (16, 128)):
        made.effort = torch.tensor(effort)
        made.settle()
        recalls.append(made.recall(library.rows, patterns(300, 5), COUNT))
    assert all(before < after for before, after in pairwise(recalls))


@pytest.mark.usefixtures("_either")
@pytest.mark.parametrize(("rows", "latent"), [(2000, 6), (6000, WIDTH)], ids=["small", "without structure"])
def test_where_it_is_of_no_use_there_is_none(rows: int, latent: int) -> None:
    """In hundreds of dimensions at random nothing is near anything, and a tenth of them says little."""
    made = ShortList.of(patterns(rows, 1, latent), patterns(200, 2, latent), COUNT)
    assert len(made) == 0
    assert {name: tensor.numel() for name, tensor in made.state_dict().items()} == dict.fromkeys(made.state_dict(), 0)


@pytest.mark.usefixtures("_either")
def test_rows_that_are_all_but_one(library: Library) -> None:
    """Ten rows over and over: cells that would be too full are cut."""
    rows = library.rows[:10].repeat(300, 1)
    made = ShortList.of(rows, library.rows[:10], COUNT)
    if len(made):
        values, _ = made(library.rows[:10], rows, COUNT)
        torch.testing.assert_close(values, torch.ones_like(values))


@pytest.fixture(scope="module")
def long(trained: Trained) -> LibraryNetwork:
    """A library network of digits, some of whose libraries have short lists; to be read and nothing else."""
    made = LibraryNetwork(
        LibraryNetworkOptions(thresholds={"conv1": 0.99, "relu2": 0.97, "fc1": 0.99, "fc2": 0.9})
    ).eval()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(short_list, "LARGE", 400 * 64)
        patched.setattr(short_list, "LONG", 600)
        patched.setattr(short_list, "ALONE", 1)
        patched.setattr(short_list, "WORTH", 0)  # so few rows are not
        return made.fit(trained.captures("train"), trained.captures("calibrate"))


def test_large_libraries_alone_have_one(trained: Trained, long: LibraryNetwork) -> None:
    lengths = {
        layer: (rows, len(library.short_list))
        for (layer, rows), library in zip(long.sizes().items(), long.layer_libraries().values(), strict=True)
    }
    assert all((rows > 400 and layer != "fc2") == (cells > 0) for layer, (rows, cells) in lengths.items())
    assert {cells > 0 for _, cells in lengths.values()} == {True, False}
    cells = [len(one.short_list.cells) for one in long.layer_libraries().values() if len(one.short_list)]
    assert {count > 0 for count in cells} == {True, False}
    recall = long.diagnose(trained.captures("train"), trained.captures("evaluate"))["recall"]
    assert set(recall) == {layer for layer, (_, cells) in lengths.items() if cells}
    assert min(recall.values()) > 0.97


def test_it_is_kept_with_the_library(trained: Trained, long: LibraryNetwork) -> None:
    restored = LibraryNetwork.restored(long.options.model_dump(), save(long.state_dict()))
    (capture,) = trained.captures("evaluate", 1000)
    torch.testing.assert_close(restored.score(capture), long.score(capture), rtol=0, atol=0)


def test_scores_are_those_of_every_row(trained: Trained, long: LibraryNetwork) -> None:
    (capture,) = trained.captures("evaluate", 1000)
    every = copy.deepcopy(long)
    for library in every.layer_libraries().values():
        library.short_list = ShortList()
    assert (long.score(capture) == every.score(capture)).double().mean() > 0.9


def test_a_graph_holds_it(trained: Trained, long: LibraryNetwork) -> None:
    detectors: dict[str, Detector] = {long.kind: long}
    calibrate, fuse = (read(detectors, trained.captures(name)) for name in ("calibrate", "fuse"))
    reader = TorchReader(trained.classifier, detectors, trained.preprocessing)
    with closing(Screen(reader, trained.preprocessing, NAMES, detectors, Calibration.fit(calibrate, fuse))) as screen:
        images, labels = trained.part("evaluate")
        both = torch.cat([images, trained.attack(images, labels, 0.2, 10)]).numpy()
        graphs = graphs_of({FUSED: screen}, both[:40])
        by_graph = GraphReader(graphs[FUSED], graphs[ALONE], list(detectors), 1)
        for size in (1, 64):
            assert difference(screen, by_graph, both[:size]) is None
        assert difference(screen, by_graph, both) is None
