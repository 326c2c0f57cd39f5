"""A transfer set at an address of any fsspec file system (`s3://...`, `gs://...`, `file://...`): a copy of a local folder.

A set is always written and read in a local folder, where locks, fsync, renames and memory maps keep it whole. Each file is
copied to the address once it is whole here, then named with its size and sha256 in `mirror.json`: what that does not name is not
there. The manifest is named last. Who reads copies what is missing or differs into a cache and checks it before it is used.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import re
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, final

import psutil

from understudy.errors import MissingExtraError, TransferSetError, UnderstudyError, did_you_mean
from understudy.store._shards import MANIFEST, PLAN, as_json, of_this_version, read_shard, write_whole

LISTING = "mirror.json"
LOCK = "writer.json"
VERSION = 1
CACHE = "UNDERSTUDY_CACHE"
"""The environment variable that names the folder of local copies."""
LEASE, RENEWAL = 600.0, 60.0
"""Seconds for which a writer holds an address, and after which it says so again."""
AT_ONCE = 8
"""Files that are copied from an address at the same time."""


def is_address(place: str | Path) -> bool:
    """Whether a place is an address of fsspec, not a path.

    >>> is_address("s3://bucket/sets/digits"), is_address("runs/digits/transfer")
    (True, False)
    """
    return "://" in str(place)


def cache_folder(address: str, cache: str | Path | None = None) -> Path:
    """Where the local copy of an address lies: below `cache`, else $UNDERSTUDY_CACHE, else the user's cache folder."""
    kept = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    root = Path(cache or os.environ.get(CACHE) or Path(kept) / "understudy")
    words = re.sub(r"[^A-Za-z0-9.]+", "-", address).strip("-.")[-80:]
    return root / "sets" / f"{words}-{hashlib.blake2b(address.rstrip('/').encode(), digest_size=6).hexdigest()}"


@final
class Mirror:
    """An address that holds, or will hold, one transfer set; in a `with` this process is its only writer."""

    def __init__(self, address: str) -> None:
        self.address = address.rstrip("/")
        self._system, self._root = _opened(self.address)
        self._known: dict[str, Any] = {}
        self._lease: _Lease | None = None

    def __enter__(self) -> Mirror:
        self._lease = _Lease(self)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._lease is not None:
            self._lease.end()

    def note(self) -> dict[str, Any] | None:
        """The manifest or plan of the set at the address, None where there is none."""
        for name in (MANIFEST, PLAN):
            content = self.read(name)
            try:
                said = json.loads(content or b"")
            except ValueError:
                continue  # absent, or cut short and worth nothing
            return of_this_version(said, f"{self.address}/{name}")
        return None

    def has(self, name: str) -> bool:
        """Whether the address holds the file of this name that lies here, as far as this writer knows."""
        return name in self._known

    def take(self, folder: Path) -> bool:
        """Copy what the address holds of a set that goes on in this folder; whether a shard came.

        The address is what several machines share: its shards go before others of the same name here. One that is damaged there
        counts as absent, and is written again.
        """
        listing, sizes = self._listing(), self._sizes()
        self._known = {name: said for name, said in (listing or {}).items() if sizes.get(name) == said["bytes"]}
        # without a listing (a copy made by hand, a note cut short) each shard says itself whether it is whole, once it is here
        there = sorted(name for name in (sizes if listing is None else self._known) if name.startswith("shard-"))
        lacking = [name for name in there if not _is_same(folder / name, self._known.get(name))]
        clash = {name for name in lacking if (folder / name).exists() and name in self._known}

        def bring(name: str) -> bool:
            with self._copied(name, folder) as part:
                if name in self._known and not _is_same(part, self._known[name]):
                    return False
                os.replace(part, folder / name)
            return True

        came = dict(zip(lacking, _each(bring, lacking), strict=True))
        for name in (name for name, whole in came.items() if not whole):
            self._known.pop(name, None)
        if any(came[name] for name in clash):
            for path in folder.glob("shard-*.safetensors"):
                if path.name not in self._known:
                    path.unlink()  # made of other rows than what is shared: it may hold them twice
        return any(came.values())

    def put(self, path: Path) -> None:
        """Copy a whole file to the address, unless it is there already, and name it."""
        said = {"bytes": path.stat().st_size, "sha256": sha256(path)}
        if self._known.get(path.name) == said:
            return
        self._hold()
        with self._asking(f"copy {path.name} to"):
            self._made(lambda: self._system.put_file(str(path), self._at(path.name)))
            self._system.invalidate_cache()
            arrived = self._system.info(self._at(path.name))["size"]
        if arrived != said["bytes"]:
            raise TransferSetError(
                f"{self.address}/{path.name} has {arrived:,} bytes after it was copied, {said['bytes']:,} here. What is written is whole: "
                "the same command goes on",
                code="U472",
            )
        self._known[path.name] = said
        self.write(LISTING, {"version": VERSION, "files": self._known})

    def drop(self, name: str) -> None:
        """Take a file away from the address."""
        if self._known.pop(name, None) is None:
            return
        self._hold()
        self.write(LISTING, {"version": VERSION, "files": self._known})
        self.remove(name)

    def fetch(self, folder: Path, *, verify: bool = True) -> Path:
        """Bring a folder to what the complete set at the address is; `verify` hashes what is here already."""
        listing, content = self._listing(), self.read(MANIFEST)
        known = listing or {}
        if content is None or (listing is not None and MANIFEST not in known):
            begun = bool(known) or content is not None
            told = "is not complete: its teaching goes on, or stopped. The same `understudy teach` finishes it"
            there = f"{self.address} {told}" if begun else f"no transfer set at {self.address}: there is no {MANIFEST}"
            raise TransferSetError(there, code="U026")
        try:
            entries = json.loads(content)["shards"]
        except (ValueError, KeyError, TypeError):
            raise self._differs(MANIFEST, listing) from None
        if MANIFEST in known and hashlib.sha256(content).hexdigest() != known[MANIFEST]["sha256"]:
            raise self._differs(MANIFEST, listing)
        _make(folder)

        def whole(path: Path, entry: dict[str, Any], verify: bool) -> bool:
            if entry["file"] in known:
                return _is_same(path, known[entry["file"]], verify=verify)
            try:
                return bool(read_shard(path, expected=entry, verify=verify))
            except TransferSetError:
                return False

        def bring(entry: dict[str, Any]) -> None:
            path = folder / entry["file"]
            if whole(path, entry, verify):
                return
            with self._copied(path.name, folder) as part:
                if not whole(part, entry, True):
                    raise self._differs(path.name, listing)
                os.replace(part, path)

        _each(bring, entries)
        if not (folder / MANIFEST).exists() or (folder / MANIFEST).read_bytes() != content:
            write_whole(folder / MANIFEST, content)
        return folder

    def read(self, name: str) -> bytes | None:
        """A small file at the address, None where there is none."""
        with self._asking(f"read {name} of"):
            self._system.invalidate_cache()
            try:
                return bytes(self._system.cat_file(self._at(name)))
            except FileNotFoundError:
                return None

    def write(self, name: str, said: dict[str, Any], *, new: bool = False) -> bool:
        """Write a small note at the address; False when it shall be `new` and is there."""
        with self._asking(f"write {name} of"):
            try:
                self._made(lambda: self._system.pipe_file(self._at(name), as_json(said), mode="create" if new else "overwrite"))
            except FileExistsError:
                return False
        return True

    def remove(self, name: str) -> None:
        """Remove a file at the address, if it is there."""
        with self._asking(f"remove {name} of"), suppress(FileNotFoundError):
            self._system.rm_file(self._at(name))

    def _at(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _made(self, work: Callable[[], Any]) -> None:
        """Do this, after the folder is made where a file system needs that."""
        try:
            work()
        except FileNotFoundError:
            self._system.makedirs(self._root, exist_ok=True)
            work()

    def _hold(self) -> None:
        if self._lease is not None:
            self._lease.check()

    def _sizes(self) -> dict[str, int]:
        with self._asking("list"):
            self._system.invalidate_cache()
            try:
                return {str(each["name"]).rpartition("/")[2]: each["size"] for each in self._system.ls(self._root, detail=True)}
            except FileNotFoundError:
                return {}

    def _listing(self) -> dict[str, Any] | None:
        """What the address says it holds; None where it does not say."""
        content = self.read(LISTING)
        try:
            said = json.loads(content or b"")
        except ValueError:
            return None
        if said["version"] != VERSION:
            told = f"{self.address}/{LISTING} is format {said['version']}, this version of understudy reads {VERSION}"
            raise TransferSetError(f"{told}. Read it with the version that wrote it", code="U024")
        return dict(said["files"])

    @contextmanager
    def _copied(self, name: str, folder: Path) -> Iterator[Path]:
        """A file of the address as a temporary one in this folder."""
        part = folder / f".{name}.{uuid.uuid4().hex[:8]}.part"
        try:
            with self._asking(f"read {name} of"):
                try:
                    self._system.get_file(self._at(name), str(part))
                except FileNotFoundError:
                    part.unlink(missing_ok=True)
                    part.touch()  # of no shard's size or hash
            yield part
        finally:
            part.unlink(missing_ok=True)

    def _differs(self, name: str, before: dict[str, Any] | None) -> TransferSetError:
        """Another file than was named: because somebody writes there, or because it is damaged."""
        if self._listing() != before:
            told = f"{self.address} was changed while it was read. What came is kept: open it again when its writer is done"
            return TransferSetError(told, code="U474")
        told = f"{self.address}/{name} is damaged: it is not what was written there"
        return TransferSetError(
            f"{told}. Remove it and run the same `understudy teach` again: only it is copied or taught again", code="U473"
        )

    @contextmanager
    def _asking(self, what: str) -> Iterator[None]:
        """Drivers raise what they like: said as one sentence, with what to do."""
        try:
            yield
        except (UnderstudyError, FileExistsError):
            raise
        except PermissionError as error:
            raise TransferSetError(
                f"no permission to {what} {self.address}: {error}. Keys come from the environment or the files that the driver of "
                f"{self.address.partition('://')[0]} reads; whoever writes needs to read, list, write and delete",
                code="U471",
            ) from error
        except Exception as error:
            said = " ".join(str(error).split()) or "no more was said"
            raise TransferSetError(
                f"cannot {what} {self.address}: {type(error).__name__}: {said}. What is written is whole: the same command goes on",
                code="U472",
            ) from error


@final
class _Lease:
    """The note of the one who writes: who, and until when. It is renewed as long as the process lives.

    Object stores have no locks. Where they can refuse to overwrite (S3, Google Cloud Storage, memory) two writers cannot both begin;
    elsewhere the note is read back, and two that begin in the same moment may be found out only at the next shard.
    """

    def __init__(self, mirror: Mirror) -> None:
        self._mirror = mirror
        self._said = {"host": socket.gethostname(), "pid": os.getpid(), "started": _started(os.getpid()), "token": uuid.uuid4().hex}
        if not mirror.write(LOCK, self._until(), new=True):
            there = self._there()
            if there is not None and not self._abandoned(there):
                raise self._taken(there)
            mirror.remove(LOCK)
            if not mirror.write(LOCK, self._until(), new=True):
                raise self._taken(self._there() or {})
        self.check()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._renew, daemon=True, name="lease")
        self._thread.start()

    def check(self) -> None:
        """TransferSetError when another one writes there by now."""
        there = self._there()
        if there is None or there.get("token") != self._said["token"]:
            raise self._taken(there or {})

    def end(self) -> None:
        """Let others write."""
        self._done.set()
        self._thread.join()
        with suppress(TransferSetError):  # it ends by itself
            self.check()
            self._mirror.remove(LOCK)

    def _renew(self) -> None:
        while not self._done.wait(RENEWAL):
            with suppress(TransferSetError):  # whoever copies the next file will tell
                self.check()
                self._mirror.write(LOCK, self._until())

    def _until(self) -> dict[str, Any]:
        return self._said | {"until": time.time() + LEASE}

    def _there(self) -> dict[str, Any] | None:
        try:
            said = json.loads(self._mirror.read(LOCK) or b"")
        except ValueError:
            return None
        return said if isinstance(said, dict) else None

    def _abandoned(self, there: dict[str, Any]) -> bool:
        here = there.get("host") == self._said["host"]
        return time.time() > float(there.get("until", 0)) or (here and _started(int(there.get("pid", 0))) != there.get("started"))

    def _taken(self, there: dict[str, Any]) -> TransferSetError:
        who = f"process {there['pid']} on {there['host']}" if {"pid", "host"} <= set(there) else "another process"
        left = max(0.0, float(there.get("until", 0)) - time.time())
        return TransferSetError(
            f"{who} is writing {self._mirror.address}. Wait for it; if it is gone, its note ends in {left:.0f} s, or remove "
            f"{self._mirror.address}/{LOCK}",
            code="U475",
        )


def sha256(path: Path) -> str:
    """The SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_same(path: Path, said: dict[str, Any] | None, *, verify: bool = True) -> bool:
    """Whether the file here is the one that is named; any file, where nothing is."""
    if said is None or not path.exists():
        return path.exists()
    return path.stat().st_size == said["bytes"] and (not verify or sha256(path) == said["sha256"])


def _each(work: Callable[[Any], Any], over: Iterable[Any]) -> list[Any]:
    """What comes of each, several at a time."""
    with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="mirror") as threads:
        return list(threads.map(work, over))


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TransferSetError(f"cannot make {folder} for a copy of the transfer set: {error.strerror}. Set {CACHE}", code="U023") from None


def _started(pid: int) -> float | None:
    """When the process with this number on this machine began; None where there is none."""
    try:
        return psutil.Process(pid).create_time()
    except (psutil.NoSuchProcess, ValueError):
        return None


def _opened(address: str) -> tuple[Any, str]:
    """The file system of an address and the path in it."""
    try:
        fsspec: Any = importlib.import_module("fsspec")
    except ModuleNotFoundError:
        raise MissingExtraError("fsspec", "storage") from None
    protocol = address.partition("://")[0]
    try:
        system, root = fsspec.core.url_to_fs(address)
    except ImportError as error:
        raise TransferSetError(f"{address}: the driver of {protocol}:// is not installed: {error} (with pip)", code="U470") from None
    except Exception as error:
        near = "" if protocol in fsspec.available_protocols() else f"; {did_you_mean(protocol, fsspec.available_protocols())}"
        raise TransferSetError(f"{address} is no address that fsspec knows: {error}{near}", code="U470") from None
    return system, str(root).rstrip("/")
