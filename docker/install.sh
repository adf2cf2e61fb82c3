#!/bin/sh
# A build step of docker/Dockerfile: install.sh uv | worker | serve cpu | serve cuda
#
# Versions and hashes are those of requirements.lock: uv checks the hashes of its constraints, and
# refuses a file that differs. onnxruntime.lock has the one package that the lock cannot hold, since
# onnxruntime and onnxruntime-gpu write the same files.
set -eu

# Both secrets are optional.
if [ -f /run/secrets/index ]; then
    set -a
    . /run/secrets/index
    set +a
fi
if [ -f /run/secrets/ca ]; then
    export SSL_CERT_FILE=/run/secrets/ca PIP_CERT=/run/secrets/ca
fi

install() {
    /opt/uv/bin/uv venv --quiet --python /usr/bin/python3 /opt/venv
    # Compiled once, here: whoever runs the image may not write, and would compile at each start.
    # The sources do not change afterwards, so nothing need look at them again.
    PYC_INVALIDATION_MODE=UNCHECKED_HASH /opt/uv/bin/uv pip install --python /opt/venv/bin/python \
        --no-cache --compile-bytecode \
        --constraints requirements.lock --constraints onnxruntime.lock "$@"
}

case "$1 ${2-}" in
    'uv ')
        python3 -m venv /opt/uv
        sed -n '/^uv==/,/[^\]$/p' requirements.lock >uv.lock
        /opt/uv/bin/pip install --quiet --no-cache-dir --require-hashes -r uv.lock
        ;;
    'worker ') install --requirements pyproject.toml ;;
    'serve cpu') install mlflow-skinny numpy pandas pillow onnxruntime ;;
    'serve cuda') install mlflow-skinny numpy pandas pillow 'onnxruntime-gpu[cuda,cudnn]' ;;
    *)
        echo "install.sh: no such step: $*: PROVIDER is cpu or cuda" >&2
        exit 2
        ;;
esac
