"""Make a folder with the packages that a GPU machine without a network lacks, and say its size.

python -m tests.benchmarks.gpu_carry FOLDER [--with PACKAGE …] [--python 3.12]

For CPython on Linux, x86-64, where torch and transformers are installed. The folder goes onto that
machine's PYTHONPATH as it is. The versions are those of `.ci/constraints.txt`; nothing is installed
here. The repository counts with what of it lies on this disk: without the published pages, which
nothing needs there, it is half as large. Exit code 1 where both exceed what is usually carried.
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
WITHOUT_PAGES = "git sparse-checkout set --no-cone '/*' '!/reports'"


def main() -> None:
    """Fill the folder, then print what there is to carry."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--with", dest="more", nargs="+", default=[], metavar="PACKAGE")
    parser.add_argument("--python", default="3.12", metavar="VERSION", help="that machine's")
    options = parser.parse_args()
    if options.folder.exists() and any(options.folder.iterdir()):
        sys.exit(f"{options.folder} is not empty: give another folder")
    packages = (*PACKAGES, *options.more)
    command = install_command(options.folder, packages, options.python)
    if subprocess.run(command, check=False).returncode:
        sys.exit("pip failed: see above")
    carried, tree = folder_bytes(options.folder), tree_bytes()
    print(f"folder {carried / 2**20:.1f} MiB, repository {tree / 2**20:.1f} MiB")
    print(f"there: export PYTHONPATH={options.folder}:. HF_HUB_OFFLINE=1")
    if carried + tree > MAX_BYTES:
        sys.exit(
            f"together more than {MAX_BYTES >> 20} MiB. Leave the published pages out: "
            f"{WITHOUT_PAGES} (`git sparse-checkout disable` brings them back)"
        )


def install_command(folder: Path, packages: tuple[str, ...], python: str) -> list[str]:
    """The command that unpacks the wheels of the pinned versions into the folder."""
    target = ["--python-version", python, "--implementation", "cp", "--only-binary=:all:"]
    platforms = [word for name in PLATFORMS for word in ("--platform", name)]
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile"]
    pip += ["--disable-pip-version-check", "--target", str(folder)]
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
