# certfs in a container. The tree is mounted inside it and shared with the host and with other
# containers through a directory with shared propagation; docs/operations.md shows how.
#
#   docker build -t certfs .
#   docker run --rm --device /dev/fuse --cap-add SYS_ADMIN \
#       -v /srv/certfs/store:/store -v /srv/certfs/view:/view:rshared certfs
#
# The mount is made at /view/certfs, so that /view itself can be the shared directory; a new one is
# empty, so the entry point makes the directory.

FROM docker.io/library/debian:bookworm-slim AS build
RUN export DEBIAN_FRONTEND=noninteractive \
    && apt-get update -qq \
    && apt-get install -qq -y --no-install-recommends \
        gcc libc6-dev libfuse3-dev pkg-config python3-dev python3-venv >/dev/null \
    && rm -rf /var/lib/apt/lists/*
# The locked dependencies first: this layer lasts until a lock file changes.
COPY requirements.txt requirements-build.txt /src/
RUN python3 -m venv /build \
    && /build/bin/pip install --quiet --require-hashes -r /src/requirements-build.txt \
    && /build/bin/pip wheel --quiet --wheel-dir /wheels \
        --require-hashes --no-build-isolation -r /src/requirements.txt
COPY pyproject.toml README.md LICENSE /src/
COPY certfs /src/certfs
COPY docs/certfs.1 /src/docs/
RUN /build/bin/pip wheel --quiet --wheel-dir /wheels --no-deps --no-build-isolation /src \
    && python3 -m venv --without-pip /opt/certfs \
    && /build/bin/pip --python /opt/certfs/bin/python install --quiet \
        --no-index --no-deps --compile /wheels/*.whl

FROM docker.io/library/debian:bookworm-slim
RUN export DEBIAN_FRONTEND=noninteractive \
    && apt-get update -qq \
    && apt-get install -qq -y --no-install-recommends fuse3 python3 >/dev/null \
    && apt-get clean && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/log/apt \
    && mkdir -p /store /view
COPY --from=build /opt/certfs /opt/certfs
ENV PATH=/opt/certfs/bin:$PATH
# Not "&&": where a killed container left a dead mount, mkdir fails and certfs mounts over it.
ENTRYPOINT ["/bin/sh", "-c", "mkdir -p /view/certfs 2>/dev/null; exec certfs mount --foreground \"$@\"", "certfs"]
CMD ["--store", "/store", "/view/certfs"]
