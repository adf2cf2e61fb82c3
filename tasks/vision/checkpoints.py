"""Weights on disk: safetensors files, so tensors and text only, whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from tasks.vision.atomic import replacing
from tasks.vision.errors import RefitError

if TYPE_CHECKING:
    from torch import Tensor

_LENGTH_BYTES = 8  # a safetensors file starts with its header's length, little-endian


def save(path: Path, state_dict: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors and metadata to `path`, atomically; equal inputs give equal bytes.

    Args:
        path: the .safetensors file; its folder is made.
        state_dict: tensors of any dtype, shape and device; those that share memory are refused
            by safetensors.
        metadata: what a reader should know about them.
    """
    import safetensors.torch  # torch, which takes seconds and which `read_metadata` can do without

    tensors = {name: state_dict[name].detach().cpu().contiguous() for name in sorted(state_dict)}
    content = _with_metadata(safetensors.torch.save(tensors), metadata)
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors of a file, on the CPU, and its metadata.

    Raises:
        RefitError: no such file, or a damaged one.
    """
    with _opened(path, "pt") as file:
        return {name: file.get_tensor(name) for name in sorted(file.keys())}, _metadata(file)


def read_metadata(path: Path) -> dict[str, str]:
    """Return the metadata alone; only the file's header is read, and torch is not imported.

    Raises:
        RefitError: no such file, or a damaged one.
    """
    with _opened(path, "numpy") as file:
        return _metadata(file)


def _with_metadata(content: bytes, metadata: Mapping[str, str]) -> bytes:
    """Put metadata into a safetensors file that has none.

    safetensors itself writes them in the order of a hash map that differs from process to
    process, which would give equal weights another hash each time.
    """
    start = _LENGTH_BYTES + int.from_bytes(content[:_LENGTH_BYTES], "little")
    tensors = json.loads(content[_LENGTH_BYTES:start])
    header = json.dumps({"__metadata__": dict(sorted(metadata.items())), **tensors}).encode()
    header += b" " * (-len(header) % _LENGTH_BYTES)  # the format aligns the tensors
    return len(header).to_bytes(_LENGTH_BYTES, "little") + header + content[start:]


def _metadata(file: Any) -> dict[str, str]:
    return dict(sorted((file.metadata() or {}).items()))


@contextmanager
def _opened(path: Path, framework: str) -> Iterator[Any]:
    try:
        with safe_open(path, framework=framework) as file:
            yield file
    except FileNotFoundError:
        raise RefitError(f"no {path}: run the stage that writes it") from None
    except (SafetensorError, OSError) as error:
        raise RefitError(
            f"{path} is no readable safetensors file ({error}): "
            "delete it and run the stage that writes it again"
        ) from None
