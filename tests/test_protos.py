"""The committed stubs are what the .proto gives, and the .proto compiles alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROTOS = ("proto/askance/v1/screening.proto", "proto/inference/inference.proto")


def protoc(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "grpc_tools.protoc", *arguments], cwd=ROOT, check=True)


def test_the_committed_stubs_are_fresh(tmp_path: Path) -> None:
    protoc(
        "-Iaskance/service/pb=proto",
        f"--python_out={tmp_path}",
        f"--pyi_out={tmp_path}",
        f"--grpc_python_out={tmp_path}",
        *PROTOS,
    )
    made = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*.py*"))
    stubs = ("{}_pb2.py", "{}_pb2.pyi", "{}_pb2_grpc.py")
    assert [path.name for path in made] == [stub.format(Path(proto).stem) for proto in PROTOS for stub in stubs]
    for path in made:
        assert (ROOT / path).read_text() == (tmp_path / path).read_text(), f"{path} is stale: run `make protos`"


@pytest.mark.parametrize("proto", PROTOS)
def test_a_proto_compiles_stand_alone(tmp_path: Path, proto: str) -> None:
    protoc("-I", "proto", f"--python_out={tmp_path}", proto)
    stub = Path(proto).relative_to("proto").with_suffix("")
    assert (tmp_path / f"{stub}_pb2.py").exists()


@pytest.mark.parametrize("path", sorted((ROOT / "proto").rglob("*.proto")), ids=lambda path: path.name)
def test_no_proto_imports_another_of_ours(path: Path) -> None:
    imports = [line for line in path.read_text().splitlines() if line.startswith("import")]
    assert all('"google/protobuf/' in line for line in imports)
