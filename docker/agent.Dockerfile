# The agent's image: one static program and the certificate authorities, nothing else, as a user without rights. From the
# repository's root:
#
#     docker build -t registry.example.com/hearth/hearth-agent:0.1.0 -f docker/agent.Dockerfile .
#
# For another platform: `docker buildx build --platform linux/arm64 ...`, which compiles on that platform or emulates it. The
# image of Rust can come from a registry of your own: `--build-arg RUST=registry.example.com/rust:1.95-alpine`.
ARG RUST=rust:1.95-alpine
FROM ${RUST} AS build
RUN apk add --no-cache ca-certificates clang cmake gcc g++ linux-headers make musl-dev perl
WORKDIR /src
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry --mount=type=cache,target=/src/target \
    cargo build --release --locked --package agent --bin hearth-agent \
    && install -D target/release/hearth-agent /out/hearth-agent

FROM scratch
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=build /out/hearth-agent /usr/local/bin/hearth-agent
USER 65532:65532
ENTRYPOINT ["/usr/local/bin/hearth-agent"]
CMD ["run", "--config", "/etc/hearth/agent.yaml"]
