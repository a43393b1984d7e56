"""Versions, hardware, commit and command of a run."""

import contextlib
import hashlib
import os
import platform
import subprocess
import sys
from datetime import datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

DETERMINE = ("python", "platform", "processor", "versions", "source")  # what the bits of a run may depend on


def environment() -> dict[str, Any]:
    """Versions, hardware, commit and command, for whoever wants to know later."""
    return {
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "versions": _versions(),
        "source": _source(),
        "git": _git(Path.cwd()),
    }


@cache  # a process imports each of them once
def _versions() -> dict[str, str]:
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
    return versions


@cache
def _processor() -> str:
    """What computes: other processors have other instructions, which round otherwise."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


@cache
def _source() -> str:
    """SHA-256 of dltrain's own code, of which a version number says too little."""
    files = sorted(Path(__file__).parent.rglob("*.py"))
    return hashlib.sha256(b"".join(hashlib.sha256(file.read_bytes()).digest() for file in files)).hexdigest()


@cache  # so that the runs of a sweep do not each ask git, which takes as long as a short training
def _git(folder: Path) -> dict[str, Any] | None:
    """Commit and whether the work tree differs from it; None outside a repository."""
    try:
        commit = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=True, cwd=folder
        )
        status = subprocess.run(
            ["git", "status", "--porcelain"], capture_output=True, text=True, timeout=5, check=True, cwd=folder
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit.stdout.strip(), "dirty": bool(status.stdout.strip())}
