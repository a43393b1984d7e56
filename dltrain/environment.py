"""Versions, hardware, commit and command of a run."""

import os
import platform
import subprocess
import sys
from datetime import datetime
from importlib import metadata
from typing import Any


def environment() -> dict[str, Any]:
    """Versions, hardware, commit and command, for whoever wants to know later."""
    packages = (
        "dltrain",
        "torch",
        "numpy",
        "scikit-learn",
        "pandas",
        "hydra-core",
        "torchmetrics",
        "safetensors",
        "skops",
    )
    versions = {}
    for package in packages:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "unknown"
    return {
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "versions": versions,
        "git": _git(),
    }


def _git() -> dict[str, Any] | None:
    """Commit and whether the work tree differs from it; None outside a repository."""
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=True)
        status = subprocess.run(["git", "status", "--porcelain"], capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit.stdout.strip(), "dirty": bool(status.stdout.strip())}
