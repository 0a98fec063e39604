"""Checkpoints that tests alter."""

import json
from pathlib import Path


def forget_hashes(checkpoint: Path) -> None:
    """Make a checkpoint one of an earlier version, of which nobody can tell what was altered."""
    config = json.loads((checkpoint / "config.json").read_text())
    del config["sha256"]
    (checkpoint / "config.json").write_text(json.dumps(config))
