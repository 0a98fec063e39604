"""The API is what /openapi.json says: checked against real answers by a client that is made from it."""

import shutil
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

SCHEMATHESIS = "from schemathesis.cli import schemathesis; schemathesis()"


@pytest.mark.nightly
def test_answers_fit_the_schema(start_server, gallery: Path, tmp_path: Path) -> None:
    """Every check but one: rules that a schema cannot state refuse requests that fit it, with status 422."""
    path = shutil.copytree(gallery, tmp_path / "mine")
    with start_server(path, "--writable") as server:
        command = [sys.executable, "-c", SCHEMATHESIS, "run", f"{server.url}/openapi.json", "--checks", "all",
                   "--exclude-checks", "positive_data_acceptance", "--max-examples", "150",
                   "--generation-deterministic", "--phases", "coverage,fuzzing"]  # fmt: skip
        ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert ran.returncode == 0, ran.stdout
        assert "Traceback" not in server.log.read_text()


def test_the_schema_names_every_path_and_refers_to_what_it_has(http: httpx.Client) -> None:
    schema = http.get("/openapi.json").json()
    assert schema["openapi"] == "3.1.0"
    found = {(method.upper(), path) for path, methods in schema["paths"].items() for method in methods}
    assert found == {
        ("POST", "/v1/search"), ("POST", "/v1/score"), ("POST", "/v1/encode"), ("POST", "/v1/explain"),
        ("GET", "/v1/galleries"), ("GET", "/v1/galleries/{name}/pictures"), ("PUT", "/v1/galleries/{name}/pictures"),
        ("GET", "/v1/galleries/{name}/rows"), ("PUT", "/v1/galleries/{name}/rows"),
        ("PATCH", "/v1/galleries/{name}/rows"), ("DELETE", "/v1/galleries/{name}/rows"), ("POST", "/v1/reopen"),
    }  # fmt: skip

    def references(value: object) -> set[str]:
        if isinstance(value, dict):
            own = {value["$ref"]} if "$ref" in value else set()
            return own.union(*map(references, value.values()))
        return set().union(*map(references, value)) if isinstance(value, list) else set()

    names = {f"#/components/schemas/{name}" for name in schema["components"]["schemas"]}
    assert references(schema) <= names
    assert {"#/components/schemas/SearchRequest", "#/components/schemas/Problem"} <= references(schema)
    for path in ("/v1/galleries/gallery/pictures", "/v1/galleries/gallery/rows"):
        allowed = http.request("POST", path).headers["allow"]
        template = path.replace("/gallery/", "/{name}/")
        assert set(allowed.split(", ")) - {"HEAD"} == {method.upper() for method in schema["paths"][template]}
