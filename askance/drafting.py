"""The commands on the way to a config: which there are, what a classifier has to tap, what is wrong with one."""

from __future__ import annotations

import json as json_format
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from askance.arguments import ConfigArgument, JsonOption, in_a_folder
from askance.reading import text_of


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(f"expected numbers with commas between them, got {text!r}") from None


def _sides(text: str) -> tuple[int, ...]:
    sides = _numbers(text)
    if len(sides) != 3 or any(side != int(side) or side < 1 for side in sides):
        raise typer.BadParameter(f"expected CHANNELS,HEIGHT,WIDTH, such as 3,32,32, got {text!r}")
    return tuple(int(side) for side in sides)


def _keywords(text: str) -> dict[str, Any]:
    try:
        found = json_format.loads(text)
    except json_format.JSONDecodeError as error:
        raise typer.BadParameter(f"""expected JSON, such as '{{"classes": 10}}': {error}""") from None
    if not isinstance(found, dict):
        raise typer.BadParameter(f"""expected a JSON object, such as '{{"classes": 10}}', got {text!r}""")
    return found


def _names(text: str) -> tuple[str, ...]:
    if "," in text:
        listed = text.split(",")
    else:  # one name alone names no classes
        try:
            listed = text_of(Path(text)).splitlines()
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or "it is no UTF-8 text"
            raise typer.BadParameter(
                f"expected names with commas between them, or a file, got {text!r}: {why}"
            ) from None
    return tuple(name.strip() for name in listed if name.strip())


def _part(text: str) -> str | int:
    return int(text) if text.isdigit() else text


TrainedOn = Literal["train", "none", "all"]
FACTORY_HELP = (
    "Builds it: my_package.models:build, torchvision:resnet18, timm:NAME, transformers:NAME, or an example's name."
)
FactoryOption = Annotated[str, typer.Option("--classifier", metavar="FACTORY", help=FACTORY_HELP)]
WEIGHTS_HELP = "Its weights: .safetensors, or what torch.save wrote."
WeightsOption = Annotated[Path, typer.Option("--weights", metavar="FILE", help=WEIGHTS_HELP)]
ArgumentsOption = Annotated[
    Any, typer.Option("--arguments", metavar="JSON", help="Keyword arguments of the factory.", parser=_keywords)
]
OutputOption = Annotated[
    Any,
    typer.Option("--output", metavar="PART", help="Key or index of the logits in what it returns.", parser=_part),
]
ShapeOption = Annotated[
    Any,
    typer.Option("--shape", metavar="C,H,W", help="What it takes [default: as the images are].", parser=_sides),
]
MeanOption = Annotated[
    Any, typer.Option("--mean", metavar="R,G,B", help="Of its normalisation [default: guessed].", parser=_numbers)
]
StdOption = Annotated[Any, typer.Option("--std", metavar="R,G,B", help="Of the same.", parser=_numbers)]
NamesOption = Annotated[
    Any,
    typer.Option(
        "--class-names",
        metavar="A,B,...|FILE",
        help="In the order of the logits; a file has one on each line [default: the data's own].",
        parser=_names,
    ),
]
DataOption = Annotated[
    str | None,
    typer.Option("--data", metavar="SOURCE", help="Images: folder:PATH, npz:PATH, torchvision:NAME, ..."),
]


def config(
    name: Annotated[str, typer.Argument(metavar="NAME", help="digits, mnist, cifar10, ...")],
) -> None:
    """Print the shipped config NAME; what it names of the files that come along is named by whole paths, so that it
    works wherever it is written to: askance config digits > my.toml.
    """
    from askance.shipped import shipped_config

    print(shipped_config(name), end="")  # noqa: T201


def layers(
    config: Annotated[Path | None, typer.Argument(metavar="[CONFIG]", help="A config, or else --classifier.")] = None,
    classifier: Annotated[str | None, typer.Option("--classifier", metavar="FACTORY", help=FACTORY_HELP)] = None,
    weights: Annotated[Path | None, typer.Option("--weights", metavar="FILE", help=WEIGHTS_HELP)] = None,
    arguments: ArgumentsOption = None,
    output: OutputOption = None,
    shape: ShapeOption = None,
    data: DataOption = None,
    json: JsonOption = None,
) -> None:
    """Prove a classifier, and list its layers in the order in which they run: what each gives for an image, how far
    through the forward pass it stands, and whether a detector can tap it.
    """
    from askance.calibration.config import load_config
    from askance.calibration.layers import layers_of
    from askance.calibration.proof import PROVED_IMAGES
    from askance.calibration.subject import Subject, known, of_config, on_noise
    from askance.output import also_as_json, layer_rows, print_layers

    if (config is None) == (classifier is None):
        raise typer.BadParameter("expected a CONFIG, or --classifier and --weights: one of the two")
    if config is not None:
        found = of_config(load_config(config))
    else:
        if weights is None:
            raise typer.BadParameter("--classifier goes with --weights: expected a file")
        subject = Subject(str(classifier), weights, arguments or {}, output, shape)
        if data is None:
            found = on_noise(subject)
        else:
            known_one = known(subject, data, gradients=False)
            found = (
                known_one.classifier,
                known_one.config.preprocessing,
                known_one.pools["train"][:PROVED_IMAGES].pixels(),
            )
    listed = layers_of(*found)
    with also_as_json(json, {"layers": layer_rows(listed)}):
        print_layers(listed)


def init(
    classifier: FactoryOption,
    weights: WeightsOption,
    data: Annotated[
        str, typer.Option("--data", metavar="SOURCE", help="Images: folder:PATH, npz:PATH, torchvision:NAME, ...")
    ],
    test_data: Annotated[
        str | None, typer.Option("--test-data", metavar="SOURCE", help="Images that the classifier never saw.")
    ] = None,
    trained_on: Annotated[
        TrainedOn | None,
        typer.Option("--trained-on", help="Which images the classifier has seen: those of --data, none, or all."),
    ] = None,
    arguments: ArgumentsOption = None,
    output: OutputOption = None,
    shape: ShapeOption = None,
    mean: MeanOption = None,
    std: StdOption = None,
    class_names: NamesOption = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="CONFIG", help="Where the config goes; must not exist.", callback=in_a_folder),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Write nothing: fit on a few images, say what each detector gives."),
    ] = False,
) -> None:
    """Prove a classifier, choose layers to tap, splits, normalisation and attacks, and write a config with the reasons
    for each beside it: askance calibrate takes it as it is.
    """
    from askance.calibration.draft import draft
    from askance.calibration.rehearsal import inputs_of, rehearse
    from askance.calibration.subject import Subject, known
    from askance.errors import ConfigError
    from askance.output import console, print_diagnostics
    from askance.writing import PUBLIC, write_whole

    if out is None and not dry_run:
        raise typer.BadParameter("expected --out CONFIG, or --dry-run")
    path = Path("draft.toml") if out is None else out
    if path.exists() and not dry_run:
        raise ConfigError(f"{path} exists: choose another path, or remove it first")
    subject = Subject(classifier, weights, arguments or {}, output, shape, mean, std, class_names)
    found = known(subject, data, test_data, gradients=True)
    drafted = draft(found, data, test_data, trained_on, path)
    for note in drafted.notes:
        console.print(note, soft_wrap=True, markup=False)
    inputs = inputs_of(drafted.text, found)
    if dry_run:
        images, diagnostics = rehearse(inputs)
        console.print(
            f"fitted on {images} of {len(inputs.splits['fit'])} images, to see what each detector gives; "
            "on more, libraries have more rows:",
            soft_wrap=True,
        )
        print_diagnostics(diagnostics)
        return
    write_whole(path, drafted.text.encode(), PUBLIC)
    console.print(f"{path} is written: read it, then askance calibrate {path} --out BUNDLE", soft_wrap=True)


def validate(config: ConfigArgument, json: JsonOption = None) -> int:
    """Load CONFIG, its data and its classifier, and say all that is wrong, a line each; exit code 2 if anything is."""
    from askance.calibration.validation import mistakes_in
    from askance.output import also_as_json

    mistakes = [" ".join(line.split()) for line in mistakes_in(config)]
    with also_as_json(json, {"config": str(config), "valid": not mistakes, "mistakes": mistakes}):
        for line in mistakes:
            typer.echo(f"askance: {line}", err=True)
        if not mistakes:
            print(f"{config} is valid: askance calibrate {config} --out BUNDLE")  # noqa: T201
    return 2 if mistakes else 0
