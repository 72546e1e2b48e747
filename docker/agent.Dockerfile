# The agent's image, from the repository's root:
#
#     docker build -t registry.example.com/hearth/hearth-agent:0.1.0 -f docker/agent.Dockerfile .
#
# There is no shell in what the agent does; the system's certificate authorities are what it needs beside itself.
FROM rust:1.95-bookworm AS build
WORKDIR /src
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry --mount=type=cache,target=/src/target \
    cargo build --release --locked --package agent --bin hearth-agent \
    && install -D target/release/hearth-agent /out/hearth-agent

FROM debian:bookworm-slim
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates \
    && rm -rf /var/lib/apt/lists/*
COPY --from=build /out/hearth-agent /usr/local/bin/hearth-agent
USER 65532:65532
ENTRYPOINT ["/usr/local/bin/hearth-agent"]
CMD ["run", "--config", "/etc/hearth/agent.yaml"]
