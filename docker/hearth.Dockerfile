# The builder's image, for CI: `hearth`, and `uv` with a Python, by which it finds packages. From the repository's root:
#
#     docker build -t registry.example.com/hearth/hearth:0.1.0 -f docker/hearth.Dockerfile .
#     docker run --rm -v "$PWD:/work" --user "$(id -u):$(id -g)" registry.example.com/hearth/hearth:0.1.0 build
#
# `--build-arg RUST=...` and `--build-arg PYTHON=...` take both images from registries of your own.
ARG RUST=rust:1.95-alpine
ARG PYTHON=python:3.13-alpine
FROM ${RUST} AS build
RUN apk add --no-cache clang cmake gcc g++ linux-headers make musl-dev perl
WORKDIR /src
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry --mount=type=cache,target=/src/target \
    cargo build --release --locked --package builder --bin hearth \
    && install -D target/release/hearth /out/hearth

FROM ${PYTHON}
RUN pip install --no-cache-dir uv==0.13.9 && install -d -m 1777 /cache /work
COPY --from=build /out/hearth /usr/local/bin/hearth
ENV HEARTH_CACHE_DIR=/cache HOME=/cache
WORKDIR /work
USER 65532:65532
ENTRYPOINT ["/usr/local/bin/hearth"]
