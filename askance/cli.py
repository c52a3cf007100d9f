"""The commands. Each imports what it needs when it runs, so that `askance --help` is instant."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from askance import drafting, evaluating, picturing, reviewing, training
from askance.arguments import AllowOption, BundleArgument, ConfigArgument, JsonOption, SignatureOption

app = typer.Typer(
    help="Screen what an image classifier is asked: every prediction leaves with a calibrated verdict.",
    invoke_without_command=True,
    add_completion=False,
    rich_markup_mode=None,
)


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"askance {version('askance')}")  # noqa: T201
        raise typer.Exit


@app.callback()
def _root(
    context: typer.Context,
    _version: Annotated[
        bool, typer.Option("--version", "-V", help="Show the version and exit.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())  # noqa: T201


def _host_and_port(target: str) -> str:
    """Refuse what is not HOST:PORT before a connection fails for a reason that says less."""
    host, colon, port = target.rpartition(":")
    if not host or not colon or not port.isdigit() or "/" in target:
        raise typer.BadParameter(f"expected HOST:PORT, got {target!r}")
    return target


@app.command(short_help="The whole job on handwritten digits, in a minute.")
def demo(
    json: JsonOption = None,
    report: Annotated[
        Path | None, typer.Option("--report", metavar="FILE.html", help="Also keep the calibration's report.")
    ] = None,
) -> None:
    """The main job on scikit-learn's digits: train, calibrate, serve, attack, and print the verdicts."""
    from askance.demo import run_demo
    from askance.output import also_as_json, print_demo

    figures = run_demo()
    with also_as_json(json, figures.as_json()):
        print_demo(figures)
    if report is not None:
        picturing.keep(report, figures.report)


app.command(short_help="Write a first config for a classifier.")(drafting.init)
app.command(short_help="Print a config that comes along.")(drafting.config)
app.command(short_help="The layers of a classifier, and what can tap them.")(drafting.layers)
app.command(short_help="All that is wrong with a config.")(drafting.validate)
app.command(short_help="What each detector has seen in one image, in words and pictures.")(picturing.explain)
app.command(short_help="Draw a bundle's report anew.")(picturing.report)
app.command(short_help="The source papers' figures, of a bundle.")(picturing.figures)
app.add_typer(reviewing.app, name="review", short_help="What a server has kept for people to look at.")


app.command(short_help="Train an example classifier.")(training.train)
app.command(short_help="Train a classifier to stand attacks.")(training.harden)


@app.command(short_help="Fit, calibrate, attack, evaluate, and write a bundle.")
def calibrate(
    config: ConfigArgument,
    out: Annotated[Path, typer.Option("--out", metavar="BUNDLE", help="Where the bundle goes; must not exist.")],
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted calibration.")] = False,
) -> None:
    """Fit the detectors, calibrate, attack, evaluate, and write the bundle."""
    from askance.calibration.config import load_config
    from askance.calibration.pipeline import calibrate as calibrate_bundle
    from askance.errors import OutputError
    from askance.output import console, print_diagnostics, print_evaluation

    try:
        bundle = calibrate_bundle(load_config(config), out, resume=resume)
    except KeyboardInterrupt:
        typer.echo(
            f"askance: finished stages are kept: go on with askance calibrate {config} --out {out} --resume", err=True
        )
        raise
    evaluation = bundle.evaluation()
    try:
        print_diagnostics(evaluation.diagnostics)
        print_evaluation(evaluation)
        console.print(f"bundle {bundle.manifest.id[:12]} in {out}: askance serve {out}")
    except OutputError as error:
        raise type(error)(f"{error}; the bundle is in {out}") from None


app.command(short_help="The tables again, on other data or attacks, or what attackers get who know it.")(
    evaluating.evaluate
)


@app.command(short_help="The same bundle with tables from recent clean images.")
def recalibrate(
    bundle: BundleArgument,
    source: Annotated[
        str, typer.Option("--from", metavar="SOURCE", help="Recent clean images: folder:PATH, npz:PATH, ...")
    ],
    out: Annotated[Path, typer.Option("--out", metavar="NEW", help="Where the new bundle goes; must not exist.")],
    allow_factory: AllowOption = None,
    require_signature: SignatureOption = None,
    force: Annotated[bool, typer.Option("--force", help="Take images that look like attacks.")] = False,
) -> None:
    """Publish NEW: the classifier and detectors of BUNDLE, with conformal tables from recent clean images; and say how
    far these are from those that BUNDLE was calibrated on.
    """
    from askance.calibration.recalibration import recalibrate as recalibrate_bundle
    from askance.detectors.bundle import Bundle
    from askance.output import console, print_shifts

    opened = Bundle.open(bundle, require_signature=require_signature)
    shifts = recalibrate_bundle(opened, source, out, allowed_factories=allow_factory or (), force=force)
    print_shifts(shifts)
    made = Bundle.open(out)
    console.print(f"bundle {made.manifest.id[:12]} in {out}: askance serve {out}", soft_wrap=True)


@app.command(short_help="The same bundle with graphs, which servers compute without torch.")
def export(
    bundle: BundleArgument,
    out: Annotated[Path, typer.Option("--out", metavar="NEW", help="Where the new bundle goes; must not exist.")],
    allow_factory: AllowOption = None,
    require_signature: SignatureOption = None,
) -> None:
    """Publish NEW: BUNDLE with its classifier and detectors as ONNX graphs, which need none of the classifier's
    code; what `askance calibrate` does by itself.
    """
    from askance.calibration.exporting import graphs_of
    from askance.classifiers import trusting
    from askance.detectors.bundle import Bundle
    from askance.detectors.publishing import publish_with_graphs
    from askance.output import console

    opened = Bundle.open(bundle, require_signature=require_signature)
    made = publish_with_graphs(opened, out, build=trusting(allow_factory or ()), export=graphs_of)
    console.print(f"bundle {made.id[:12]} in {out}: askance serve {out}", soft_wrap=True)


@app.command(short_help="Serve a bundle until SIGTERM.")
def serve(
    bundle: BundleArgument,
    config: Annotated[Path | None, typer.Option("--config", metavar="FILE", help="Server settings, TOML.")] = None,
    host: Annotated[str | None, typer.Option(help="Address that clients connect to [default: 127.0.0.1].")] = None,
    port: Annotated[int | None, typer.Option(help="gRPC port, 0 for a free one [default: 8500].")] = None,
    rest_port: Annotated[
        int | None, typer.Option(help="Port of the Open Inference Protocol over HTTP [default: not served].")
    ] = None,
    metrics_host: Annotated[
        str | None, typer.Option(help="Address to read /metrics and /healthz at [default: 127.0.0.1].")
    ] = None,
    metrics_port: Annotated[int | None, typer.Option(help="Port of /metrics and /healthz [default: 9500].")] = None,
    workers: Annotated[
        str | None,
        typer.Option(metavar="N|auto", help="Processes that screen; auto: one for each CPU [default: 1]."),
    ] = None,
    candidate: Annotated[
        Path | None,
        typer.Option(metavar="BUNDLE2", help="Screens, unseen, what BUNDLE has answered; for the metrics."),
    ] = None,
    single_pass: Annotated[
        bool | None, typer.Option("--single-pass", help="Leave out detectors that need extra forward passes.")
    ] = None,
    second_looks: Annotated[
        float | None,
        typer.Option(metavar="SHARE", help="Extra passes for suspicious images alone, for at most this share of all."),
    ] = None,
    allow_factory: AllowOption = None,
    require_signature: SignatureOption = None,
    disclose: Annotated[
        bool, typer.Option("--disclose", help="Show scores and explanations to everyone, for trials.")
    ] = False,
) -> None:
    """Serve BUNDLE over gRPC until SIGTERM; accepted requests are answered first."""
    from askance.service.call import DISCLOSING
    from askance.service.config import ServerConfig
    from askance.service.program import serve as serve_bundle

    settings = ServerConfig.load(
        config,
        {
            "host": host,
            "port": port,
            "rest_port": rest_port,
            "metrics_host": metrics_host,
            "metrics_port": metrics_port,
            "workers": workers,
            "bundles.allowed_factories": allow_factory or None,
            "bundles.require_signature": require_signature,
            "rollout.candidate": candidate,
            "inference.single_pass": single_pass,
            "inference.second_looks": second_looks,
            "access.anonymous": DISCLOSING if disclose else None,
        },
    )
    serve_bundle(bundle, settings, lambda serving: print(serving, flush=True))  # noqa: T201


@app.command(short_help="Ask a server for its verdict on image files.")
def screen(
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="PNG, JPEG or WebP files.")],
    target: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="The server.", callback=_host_and_port)
    ] = "127.0.0.1:8500",
    explain: Annotated[
        bool, typer.Option("--explain", help="Also print what each detector saw; takes the role explanations.")
    ] = False,
    token_file: Annotated[
        Path | None, typer.Option("--token-file", metavar="FILE", help="Holds the token that says who asks.")
    ] = None,
    ca: Annotated[Path | None, typer.Option(metavar="FILE", help="Speak TLS; who signs for the server (PEM).")] = None,
    certificate: Annotated[Path | None, typer.Option(metavar="FILE", help="Our own, for mutual TLS (PEM).")] = None,
    key: Annotated[Path | None, typer.Option(metavar="FILE", help="Its private key (PEM).")] = None,
    json: JsonOption = None,
) -> int:
    """Ask a server for its verdict on image files; exit code 2 if one of them could not be screened."""
    from askance.errors import DataError
    from askance.output import also_as_json, error_lines, print_verdicts, verdict_rows
    from askance.service.client import Client
    from askance.service.client_messages import Credentials, readable, token_of

    token = None if token_file is None else token_of(token_file)
    failed: dict[int, DataError] = {}
    with Client(target, credentials=Credentials(ca, token, certificate, key)) as client:
        names = tuple(client.describe().class_names) if explain else ()
        rows = verdict_rows(images, client.screen_many(readable(images, failed), explain=explain), failed, names)
    with also_as_json(json, {"images": rows}):
        print_verdicts(rows, explain=explain)
    errors = error_lines(rows)
    for line in errors:
        typer.echo(f"askance: {line}", err=True)
    return 2 if errors else 0


@app.command(short_help="Make a bearer token for a client.")
def token() -> None:
    """Make a bearer token for a client, and the line of the server's settings that knows it."""
    from askance.service.guard.access import new_token

    made, digest = new_token()
    print(f'{made}\ntoken_sha256 = "{digest}"')  # noqa: T201


@app.command(short_help="What is in a bundle, and whether it is intact.")
def inspect(
    bundle: BundleArgument,
    allow_factory: AllowOption = None,
    require_signature: SignatureOption = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Also hold its graph against the classifier itself, in torch.")
    ] = False,
    json: JsonOption = None,
) -> None:
    """What is in BUNDLE, whether it is intact, and whether it can be served: its classifier answers its sentinels."""
    from askance.output import also_as_json, console, print_bundle, print_proof
    from askance.screened import ScreenedClassifier
    from askance.screening.bundle import SealedBundle

    opened = SealedBundle.open(bundle, require_signature=require_signature)
    with also_as_json(json, opened.manifest.model_dump(mode="json")):
        print_bundle(opened)
    with ScreenedClassifier(opened, allowed_factories=allow_factory or ()):
        print_proof(opened)
    if verify:
        from askance.classifiers import trusting
        from askance.detectors.bundle import Bundle
        from askance.detectors.comparison import verify_graphs

        images = verify_graphs(Bundle.of(opened), trusting(allow_factory or ()))
        console.print(f"{'verified':12}{images} images judged by its graph as by torch")


@app.command(short_help="Sign a bundle.")
def sign(
    bundle: BundleArgument,
    key: Annotated[
        Path, typer.Option("--key", metavar="FILE", help="Ed25519, PEM: openssl genpkey -algorithm ed25519.")
    ],
) -> None:
    """Sign BUNDLE, once it is found intact; other signatures of it stay."""
    from askance.output import console
    from askance.screening.bundle import SealedBundle
    from askance.screening.signatures import sign as sign_bundle

    opened = SealedBundle.open(bundle)
    public = sign_bundle(bundle, opened.signed_content, key)
    console.print(f"bundle {opened.manifest.id[:12]} in {bundle} is signed by {public[:16]}", soft_wrap=True)


@app.command(short_help="Copy the configs, .proto files and deploy/ that come along.")
def files(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where they go; must not exist.")],
) -> None:
    """Copy what comes along to FOLDER: configs/, proto/ (for clients in other languages), deploy/ (Prometheus, Grafana,
    Kubernetes, HAProxy).
    """
    from askance.shipped import copy_shipped_files

    copy_shipped_files(folder)
    print(f"configs/, proto/ and deploy/ are in {folder}")  # noqa: T201
