"""Make a folder with the wheels that a GPU machine without a network lacks, and say its size.

python -m tests.benchmarks.gpu_carry FOLDER [--with PACKAGE …]

For CPython 3.12 on Linux, x86-64, where torch and transformers are installed. The versions are
those of `.ci/constraints.txt`; nothing is installed here. Exit code 1 where wheels and the
repository's own files exceed what is usually carried.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
CONSTRAINTS = ROOT / ".ci" / "constraints.txt"
# What the suite and the tests marked gpu import, and what images with torch often lack.
PACKAGES = ("pydantic", "pydantic-core", "annotated-types", "typing-inspection")
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
MAX_BYTES = 64 << 20


def main() -> None:
    """Download the wheels, then print what there is to carry."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--with", dest="more", nargs="+", default=[], metavar="PACKAGE")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(download_command(options.folder, (*PACKAGES, *options.more)), check=True)
    wheels, tree = folder_bytes(options.folder), tree_bytes()
    print(f"wheels {wheels / 2**20:.1f} MiB, repository {tree / 2**20:.1f} MiB")
    if wheels + tree > MAX_BYTES:
        sys.exit(f"together more than {MAX_BYTES >> 20} MiB: leave out packages or reports")


def download_command(folder: Path, packages: tuple[str, ...]) -> list[str]:
    """The command that downloads the wheels, in the pinned versions."""
    target = ["--python-version", "3.12", "--implementation", "cp", "--only-binary=:all:"]
    platforms = [word for name in PLATFORMS for word in ("--platform", name)]
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder)]
    return [*pip, *target, *platforms, *(pinned(name) for name in packages)]


def pinned(package: str) -> str:
    """The package with the version of the constraints, where they have one."""
    wanted = package.lower().replace("_", "-")
    for line in CONSTRAINTS.read_text(encoding="utf-8").splitlines():
        name, equals, version = line.partition("==")
        if equals and name.strip().lower().replace("_", "-") == wanted:
            return f"{package}=={version.split(';')[0].strip()}"
    return package


def folder_bytes(folder: Path) -> int:
    """The size of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def tree_bytes() -> int:
    """The size of the files that git tracks."""
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    paths = [ROOT / name for name in listed.stdout.split("\0") if name]
    return sum(path.stat().st_size for path in paths if path.is_file())


if __name__ == "__main__":
    main()
