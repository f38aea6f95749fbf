"""Where the data directory keeps things, and nothing else.

The directory is shared by every process of one broker.  Ids are the broker's own words; a path that
came from outside goes through `inside` first.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection
from pathlib import Path, PurePosixPath

MAX_LOG_BYTES = 10 << 30
MAX_RESULT_BYTES = 1 << 40
MAX_RESULT_FILES = 1_000_000
"""Of one run."""


class OutsideDirectory(ValueError):
    """A relative path that would leave its directory."""


class DataDirectory:
    """`logs/<run>/<node>.log`, `results/<run>/…`, `datasets/<id>/…`, `incoming/` for what arrives."""

    def __init__(
        self,
        root: Path,
        *,
        max_log_bytes: int = MAX_LOG_BYTES,
        max_result_bytes: int = MAX_RESULT_BYTES,
    ) -> None:
        """`max_log_bytes` of one node's output and `max_result_bytes` of one run's results are kept."""
        self.root = root
        self.max_log_bytes = max_log_bytes
        self.max_result_bytes = max_result_bytes

    def create(self) -> None:
        """Make the folders, readable by the broker's user only, and forget what arrived half."""
        shutil.rmtree(self.root / "incoming", ignore_errors=True)
        self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
        for name in ("logs", "results", "datasets", "incoming"):
            (self.root / name).mkdir(parents=True, exist_ok=True, mode=0o700)

    def log(self, run: str, node: int) -> Path:
        return self.root / "logs" / run / f"{node}.log"

    def logs(self, run: str) -> Path:
        return self.root / "logs" / run

    def results(self, run: str) -> Path:
        return self.root / "results" / run

    def dataset(self, dataset: str) -> Path:
        return self.root / "datasets" / dataset

    def incoming(self, name: str) -> Path:
        return self.root / "incoming" / name

    def remove_dataset(self, dataset: str) -> None:
        """Remove a data set's files at once; those that are missing are no error."""
        gone = self.incoming(f"{dataset}.gone")
        try:
            self.dataset(dataset).rename(gone)  # whoever looks sees all of it or nothing
        except FileNotFoundError:
            return
        shutil.rmtree(gone, ignore_errors=True)  # what is left goes with `incoming`

    def sweep_datasets(self, known: Collection[str], before_s: float) -> list[str]:
        """Remove data sets that are not `known` and were put here before a moment; which."""
        swept = []
        for folder in (self.root / "datasets").iterdir():
            if folder.name not in known and folder.lstat().st_ctime < before_s:
                self.remove_dataset(folder.name)
                swept.append(folder.name)
        return sorted(swept)

    def remove_run(self, run: str) -> None:
        """Remove a run's logs and results; missing ones are no error."""
        for folder in (self.logs(run), self.results(run)):
            shutil.rmtree(folder, ignore_errors=True)


def inside(directory: Path, relative: str) -> Path:
    """`directory` / `relative`, for a path that came from outside.  Raises OutsideDirectory."""
    path = PurePosixPath(relative)
    if path.is_absolute() or ".." in path.parts or not path.parts or "\0" in relative:
        raise OutsideDirectory(f"{relative!r} is not a path inside the directory")
    return directory.joinpath(*path.parts)
