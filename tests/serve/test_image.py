"""What runs the server in containers: files that parse, name what exists, and install what the server needs."""

import json
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"


def test_the_dashboard_asks_for_metrics_that_exist() -> None:
    asked = set(re.findall(r"chan_[a-z_]+", (DOCKER / "grafana/dashboards/chan.json").read_text()))
    page = (ROOT / "docs/serve.md").read_text()
    known = set(re.findall(r"`(chan_[a-z_]+)`", page))
    assert {re.sub(r"_(total|bucket)$", "", name) for name in asked} == known


def test_the_dashboard_has_panels_that_do_not_overlap() -> None:
    panels = json.loads((DOCKER / "grafana/dashboards/chan.json").read_text())["panels"]
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels]
    assert len(set(places)) == len(panels)
    assert all(target["datasource"]["uid"] == "prometheus" for panel in panels for target in panel["targets"])


def test_compose_mounts_files_that_exist() -> None:
    compose = yaml.safe_load((DOCKER / "compose.yaml").read_text())
    services = compose["services"]
    mounts = [mount.partition(":")[0] for service in services.values() for mount in service["volumes"]]
    for mount in mounts:
        if mount.startswith("./"):
            assert (DOCKER / mount).exists(), mount
    assert (DOCKER / services["chan"]["build"]["context"] / services["chan"]["build"]["dockerfile"]).is_file()
    scrape = yaml.safe_load((DOCKER / "prometheus.yaml").read_text())["scrape_configs"][0]
    assert scrape["static_configs"][0]["targets"] == ["chan:8000"]
    sources = yaml.safe_load((DOCKER / "grafana/provisioning/datasources/prometheus.yaml").read_text())["datasources"]
    assert sources[0]["uid"] == "prometheus"
    assert yaml.safe_load((DOCKER / "grafana/provisioning/dashboards/chan.yaml").read_text())["providers"]


def test_the_image_has_what_the_wheel_is_made_of() -> None:
    """Every tracked file of a package passes the ignore file of the image, whose last matching line decides."""
    lines = (DOCKER / "Dockerfile.dockerignore").read_text().split()
    allowed = [line[1:] for line in lines if line.startswith("!")]
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True).stdout.split()
    packages = {name.split("/")[0] for name in tracked if name.endswith("__init__.py") and "/" in name} - {"tests"}
    assert packages <= set(allowed)
    assert {"pyproject.toml", "py.typed", "LICENSE", "NOTICE", "constraints.txt"} <= set(allowed)


@pytest.mark.nightly
def test_the_steps_of_the_image(gallery: Path, bundle: Path) -> None:
    if shutil.which("setpriv") is None or subprocess.run(["id", "-u"], capture_output=True).stdout != b"0\n":
        pytest.skip("the steps need root and setpriv")
    with tempfile.TemporaryDirectory() as place:  # pytest's own folders are for their owner only
        shutil.copytree(gallery, Path(place, "gallery"))
        shutil.copytree(bundle, Path(place, "bundle"))
        subprocess.run(["chmod", "-R", "a+rX", place], check=True)
        command = ["sh", DOCKER / "try.sh", Path(place, "gallery"), Path(place, "bundle")]
        ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=900)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "as user 10001" in ran.stdout
    assert '"certified":true' in ran.stdout
    assert "stopped with status 0" in ran.stdout
