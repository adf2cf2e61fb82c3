"""Stage `weights`: what a candidate's backbone starts from, as one versioned file of tensors.

The file's metadata tell where the tensors come from (see `initial_weights`): weights that could not
be had are replaced only where `on_missing: random` allows it, and never in silence.
"""

from __future__ import annotations

import hashlib
import importlib.util
import math
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from tasks import files, params, program
from tasks.vision import checkpoints
from tasks.vision.atomic import replacing
from tasks.vision.errors import RefitError

if TYPE_CHECKING:
    from torch import Tensor

CONNECT_SECONDS = 5.0
READ_SECONDS = 30.0
MEBIBYTE = 1 << 20
# Where torchvision's networks end in classes; a backbone has none of them.
CLASSIFIERS = ("classifier.", "fc.", "AuxLogits.")
# Files older than this BatchNorm counter lack it; PyTorch, too, then takes a fresh layer's zero.
BATCH_COUNTER = ".num_batches_tracked"


class MissingError(RefitError):
    """Weights that are not there now; the candidate's `on_missing` decides what follows."""


@dataclass(frozen=True)
class Source:
    """A file of weights: where it lies, and what to call it wherever it lies."""

    path: Path
    name: str
    sha256: str


def fetch(
    url: str,
    sha256_prefix: str,
    destination: Path,
    connect_seconds: float = CONNECT_SECONDS,
    read_seconds: float = READ_SECONDS,
) -> None:
    """Download `url` to `destination`: the whole file with the right hash, or nothing.

    Args:
        url: http(s); proxies are taken from the environment.
        sha256_prefix: hex digits that the file's SHA-256 must begin with.
        destination: replaced only by a file that passed the check.
        connect_seconds: longest wait for a connection, for each address of the host.
        read_seconds: longest wait for the next bytes.

    Raises:
        MissingError: unreachable, refused, too slow, cut short, or an HTTP error.
        RefitError: another hash than expected, or `destination` cannot be written.
    """
    import requests

    digest = hashlib.sha256()
    try:
        with (
            replacing(destination) as temporary,
            requests.get(url, stream=True, timeout=(connect_seconds, read_seconds)) as response,
        ):
            response.raise_for_status()
            length = response.raw.length_remaining  # bytes, or None where the server is silent
            total = math.ceil(length / MEBIBYTE) if length else None
            chunks = response.iter_content(MEBIBYTE)
            with temporary.open("wb") as file:
                for chunk in program.progress(chunks, destination.name, "MiB", total):
                    digest.update(chunk)
                    file.write(chunk)
            if not digest.hexdigest().startswith(sha256_prefix):
                raise RefitError(
                    f"{url}: its SHA-256 is {digest.hexdigest()}, not {sha256_prefix}…: "
                    "nothing was kept; a proxy or mirror in between may have changed the file"
                )
    except requests.RequestException as error:
        waits = f"waiting at most {connect_seconds:g} s to connect, {read_seconds:g} s for data"
        raise MissingError(f"{url}: {_root_cause(error)} ({waits})") from None
    except OSError as error:
        raise RefitError(f"cannot write {destination}: {error}; TORCH_HOME moves it") from None


def _root_cause(error: BaseException) -> BaseException:
    """Return the error at the bottom: "Connection refused", not the layers around it."""
    while error.__context__ is not None:
        error = error.__context__
    return error


def imagenet_file(url: str) -> Path:
    """Return torchvision's file of weights from PyTorch's cache, downloaded where needed.

    Args:
        url: of a torchvision weights enum; the file's name carries its hash prefix.

    Raises:
        MissingError: not in the cache, and unreachable.
        RefitError: the downloaded file has the wrong hash, or so has the cached one and no
            other could be had.
    """
    import torch

    name = PurePosixPath(urlsplit(url).path).name
    match = re.search(r"-([0-9a-f]{8,64})\.", name)
    if match is None:
        raise RefitError(f"{url}: the file's name carries no hash to check it by")
    cached = Path(torch.hub.get_dir()) / "checkpoints" / name
    if not cached.is_file():
        fetch(url, match[1], cached)
        return cached
    found = files.sha256_file(cached)
    if found.startswith(match[1]):
        return cached
    damage = f"{cached} is damaged: its SHA-256 is {found}, not {match[1]}…"
    print(f"warning: {damage}; downloading it anew", file=sys.stderr)
    try:
        fetch(url, match[1], cached)
    except MissingError as error:
        # Wrong weights are never taken for missing ones, or a bad copy would pass for bad luck.
        raise RefitError(f"{damage}; a good one could not be had: {error}") from None
    return cached


def package_file(place: str) -> Path:
    """Return a file of an installed package, which is not imported.

    Args:
        place: `<import name>/<path inside the package>`.

    Raises:
        MissingError: no such package here, or no such file in it.
    """
    package, _, inside = place.partition("/")
    # Looking up a dotted name would import its parents.
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None:
        raise MissingError(
            f"package {package!r} is not installed for {sys.executable}: "
            "`make setup` installs the demo group of packages"
        )
    for folder in spec.submodule_search_locations or ():
        if (path := Path(folder) / inside).is_file():
            return path
    raise MissingError(f"the installed package {package!r} has no file {inside!r}")


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a state dict from .safetensors, or else from PyTorch's format, as tensors only.

    Raises:
        RefitError: damaged, or it holds anything but named tensors.
    """
    if path.suffix == ".safetensors":
        return checkpoints.load(path)[0]
    import torch

    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # zip, pickle and tensor readers each have errors of their own
        raise RefitError(
            f"{path} was not loaded: it is damaged, or holds more than tensors, and unpickling "
            "that could run any code. Write a state dict instead: "
            f"torch.save(model.state_dict(), …) ({str(error).partition(chr(10))[0]})"
        ) from None
    if not isinstance(found, Mapping) or not all(
        isinstance(tensor, torch.Tensor) for tensor in found.values()
    ):
        raise RefitError(
            f"{path} holds no state dict (named tensors and nothing else): "
            "write one with torch.save(model.state_dict(), …)"
        )
    return dict(found)


def fit(source: Mapping[str, Tensor], trunk: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Return the source's tensors under the trunk's names.

    By name where the names are torchvision's, a classifier's left out; else in order, for the
    same network written with other names: every tensor must have the same role (weight,
    running_mean …) and shape.

    Args:
        source: what `path` holds.
        trunk: a backbone's state dict, of any device: names, shapes and dtypes wanted.
        path: named in errors.

    Raises:
        RefitError: too many or too few tensors, or the first that differs.
    """
    import torch

    ours = {name: value for name, value in source.items() if not name.startswith(CLASSIFIERS)}
    absent = [name for name in trunk if name not in ours]
    if ours.keys() <= trunk.keys() and all(name.endswith(BATCH_COUNTER) for name in absent):
        zero = torch.zeros((), dtype=torch.int64)
        pairs = {name: (name, ours.get(name, zero)) for name in trunk}
    elif len(ours) == len(trunk):
        pairs = dict(zip(trunk, ours.items(), strict=True))
    else:
        raise RefitError(
            f"{path} is of another network: it has {len(ours)} tensors besides a classifier, "
            f"{len(trunk)} are needed"
            + (f"; the first that it lacks is {absent[0]!r}" if absent else "")
        )
    for wanted, (name, value) in pairs.items():
        role, wanted_role = name.rpartition(".")[2], wanted.rpartition(".")[2]
        if role != wanted_role or value.shape != trunk[wanted].shape:
            raise RefitError(
                f"{path} is of another network: {name!r} {list(value.shape)} stands where "
                f"{wanted!r} {list(trunk[wanted].shape)} is needed"
            )
    return {name: value.to(trunk[name].dtype) for name, (_, value) in pairs.items()}


def find(candidate: params.Candidate) -> Source:
    """Find the file that a candidate starts from, and check its hash where one is given.

    Raises:
        MissingError: it is not there.
        RefitError: it is there, with another hash.
    """
    kind, _, place = candidate.weights.partition(":")
    name = candidate.weights
    if kind == "imagenet":
        from tasks.vision.backbones import imagenet_weights

        weights = imagenet_weights(candidate.arch)
        path, name = imagenet_file(weights.url), f"imagenet ({weights.name})"
    elif kind == "package":
        path = package_file(place)
    else:
        path = Path(place).expanduser()
        if not path.is_file():
            raise MissingError(f"no file {path} (from {Path.cwd()})")
    sha256 = files.sha256_file(path)
    if candidate.sha256 not in (None, sha256):
        raise RefitError(
            f"{path}: its SHA-256 is {sha256}, params.yaml says {candidate.sha256}: "
            "restore the file, or correct the hash if you trust this one"
        )
    return Source(path, f"file:{sha256[:12]}" if kind == "file" else name, sha256)


def requested(candidate: params.Candidate) -> str:
    """Return `weights` as asked for; of a file its name alone, which is equal on any machine."""
    kind, _, place = candidate.weights.partition(":")
    return f"file:{Path(place).name}" if kind == "file" else candidate.weights


def initial_weights(
    name: str, candidate: params.Candidate, seed: int
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return a candidate's initial tensors and the metadata that say what they are.

    The metadata are the same for the same tensors on any machine:
        arch: torchvision's name.
        requested: as in params.yaml; of a file, its name without folders.
        initialised_from: `imagenet (IMAGENET1K_V2)`, `package:…`, `file:<12 digits of its
            SHA-256>`, `random`, or `random (… unreachable)` / `random (… missing)`.
        pretrained: `true` or `false`.
        sha256: of the source file, where there is one.

    Raises:
        RefitError: wrong, unsafe or unfitting weights, or missing ones with `on_missing: fail`.
    """
    import torch

    from tasks.vision.backbones import build_backbone

    with torch.device("meta"):
        trunk = build_backbone(candidate.arch).state_dict()
    about = {"arch": candidate.arch, "requested": requested(candidate), "pretrained": "false"}
    if candidate.weights == "random":
        return _random(candidate.arch, seed), {**about, "initialised_from": "random"}
    try:
        source = find(candidate)
    except MissingError as error:
        if candidate.on_missing == "fail":
            raise RefitError(_no_weights(name, candidate, error)) from None
        print(_random_instead(name, error), file=sys.stderr)
        state = "unreachable" if candidate.weights == "imagenet" else "missing"
        about["initialised_from"] = f"random ({about['requested']} {state})"
        return _random(candidate.arch, seed), about
    about |= {"initialised_from": source.name, "sha256": source.sha256, "pretrained": "true"}
    return fit(read_tensors(source.path), trunk, source.path), about


def _random(arch: str, seed: int) -> dict[str, Tensor]:
    """Return torchvision's default initialisation under `seed`."""
    from tasks.vision.backbones import build_backbone

    return dict(build_backbone(arch, seed).state_dict())


def _no_weights(name: str, candidate: params.Candidate, error: MissingError) -> str:
    ways = [
        "`weights: file:PATH` and its `sha256`: a copy that you have",
        "`on_missing: random`: train every layer from scratch, which needs many more pictures",
    ]
    if candidate.weights == "imagenet":
        ways = [
            "let this machine reach that address (HTTPS_PROXY is honoured)",
            "TORCH_HOME: a folder that holds the file as hub/checkpoints/<its name>",
            *ways,
        ]
    lines = [f"  - {way}" for way in ways]
    return "\n".join([f"candidate {name}: no initial weights: {error}", "What helps:", *lines])


def _random_instead(name: str, error: MissingError) -> str:
    return (
        f"{'!' * 78}\n"
        f"WARNING: candidate {name} starts from RANDOM weights: {error}\n"
        "Every layer is trained from scratch; expect a worse model than from pretrained weights.\n"
        f"Once they can be had: dvc repro --force --single-item weights@{name}\n"
        f"{'!' * 78}"
    )


def main() -> None:
    """Write `data/weights/<candidate>.safetensors`."""
    name = program.candidate_argument(str(__doc__).partition("\n")[0])
    settings = params.load()
    candidate = params.candidate(settings, name)
    tensors, metadata = initial_weights(name, candidate, settings.data.seed)
    path = files.WEIGHTS / f"{name}.safetensors"
    checkpoints.save(path, tensors, metadata)
    print(f"{path}: {candidate.arch}, initialised from {metadata['initialised_from']}")


if __name__ == "__main__":
    program.run(main)
