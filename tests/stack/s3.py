"""A server that speaks S3 and checks signatures: moto's, from the package index, in memory."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.loopback import free_port
from tests.stack import processes

EVERYTHING = """{"Version": "2012-10-17",
 "Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*"}]}"""


@dataclass(frozen=True)
class S3:
    """A running server with one user.

    Attributes:
        url: on loopback.
        key: the user's access key; it is no secret.
        secret: what signs the user's requests.
    """

    url: str
    key: str
    secret: str

    def environment(self) -> dict[str, str]:
        """Return what every S3 client reads, but for the address."""
        return {
            "AWS_ACCESS_KEY_ID": self.key,
            "AWS_SECRET_ACCESS_KEY": self.secret,
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def client(self, service: str) -> Any:
        """Return a client of the user."""
        return _client(service, self.url, self.key, self.secret)


def _client(service: str, url: str, key: str, secret: str) -> Any:
    return importlib.import_module("boto3").client(
        service,
        endpoint_url=url,
        region_name="us-east-1",
        aws_access_key_id=key,
        aws_secret_access_key=secret,
    )


@contextmanager
def running(log: Path, *buckets: str) -> Iterator[S3]:
    """Run a server with empty buckets; after its user was made it lets in nobody else."""
    for module in ("moto", "boto3"):
        if importlib.util.find_spec(module) is None:
            pytest.fail(f"no {module} in this environment: run `make setup`", pytrace=False)
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    setting_up = ("CreateUser", "PutUserPolicy", "CreateAccessKey")
    environment = {**os.environ, "INITIAL_NO_AUTH_ACTION_COUNT": str(len(setting_up))}
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with processes.running(command, lambda: processes.listens(port), log, environment):
        iam = _client("iam", url, "nobody", "nothing")
        iam.create_user(UserName="refit")
        iam.put_user_policy(UserName="refit", PolicyName="all", PolicyDocument=EVERYTHING)
        made = iam.create_access_key(UserName="refit")["AccessKey"]
        server = S3(url, made["AccessKeyId"], made["SecretAccessKey"])
        for bucket in buckets:
            server.client("s3").create_bucket(Bucket=bucket)
        yield server
