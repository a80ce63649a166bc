"""Files made for browsers to download, kept apart by tab and freed with it."""

from __future__ import annotations

import shutil
import tempfile
import threading
from pathlib import Path
from zipfile import ZIP_STORED, ZipFile, ZipInfo

from gradio.utils import get_upload_folder

from numprune.errors import CancelEvent, Progress, check_cancelled
from numprune.files import atomic_file

CHUNK = 1 << 22


class Downloads:
    """Folders for files, by tab. All go when the program ends."""

    def __init__(self) -> None:
        # Inside gradio's own folder: a file from elsewhere would be copied there, and the copy would outlive the tab.
        cache = Path(get_upload_folder())
        cache.mkdir(parents=True, exist_ok=True)
        self._root = tempfile.TemporaryDirectory(prefix="numprune-", dir=cache)
        self._lock = threading.Lock()
        self._folders: dict[str, dict[Path, str]] = {}

    def folder(self, owner: str, purpose: str = "") -> Path:
        """A new, empty folder, freed with the tab; no two files for download ever share one.

        Args:
            purpose: a tab has one folder of a named purpose; an earlier one is freed first.
        """
        with self._lock:
            earlier = [path for path, why in self._folders.get(owner, {}).items() if purpose and why == purpose]
        for path in earlier:
            self.drop(owner, path)
        made = Path(tempfile.mkdtemp(dir=self._root.name))
        with self._lock:
            self._folders.setdefault(owner, {})[made] = purpose
        return made

    def drop(self, owner: str, folder: Path) -> None:
        """Free one of the tab's folders."""
        with self._lock:
            self._folders.get(owner, {}).pop(folder, None)
        shutil.rmtree(folder, ignore_errors=True)

    def free(self, owner: str) -> None:
        """Free everything the tab was offered."""
        with self._lock:
            folders = self._folders.pop(owner, {})
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)


def zip_folder(
    folder: Path, target: Path, *, progress: Progress | None = None, cancel: CancelEvent | None = None
) -> None:
    """Move a folder into an archive of one folder of its name; weights do not compress, so nothing is compressed.

    Every file is removed once it is inside, so that the disk holds little more than one copy.

    Raises:
        NumpruneError: the disk refuses; no archive is left.
        Cancelled: `cancel` was set.
    """
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    total = sum(file.stat().st_size for file in files)
    done = 0
    with atomic_file(target) as partial, ZipFile(partial, "w", ZIP_STORED) as archive:
        for file in files:
            entry = ZipInfo.from_file(
                file, f"{folder.name}/{file.relative_to(folder).as_posix()}", strict_timestamps=False
            )
            with file.open("rb") as source, archive.open(entry, "w", force_zip64=True) as inside:
                while chunk := source.read(CHUNK):
                    check_cancelled(cancel)
                    inside.write(chunk)
                    done += len(chunk)
                    if progress is not None:
                        progress(done, total, "packing")
            file.unlink()
    shutil.rmtree(folder)
