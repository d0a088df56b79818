# syntax=docker/dockerfile:1

# Exact versions, for the same image tomorrow. Whoever wants the very same bytes gives a digest of theirs, too:
#
#   docker build --build-arg RUST_DIGEST=@sha256:… --build-arg DEBIAN_DIGEST=@sha256:… -t pgtenant .
#
# RUST is that of rust-toolchain.toml; `make test` compares them.
ARG RUST=1.95.0
ARG RUST_DIGEST=
ARG DEBIAN=12.11
ARG DEBIAN_DIGEST=

FROM rust:${RUST}-slim-bookworm${RUST_DIGEST} AS build
# ring is partly C.
RUN apt-get update \
 && apt-get install -y --no-install-recommends build-essential \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    cargo build --release --locked --bin pgtenant \
 && cp target/release/pgtenant /usr/local/bin/pgtenant

FROM debian:${DEBIAN}-slim${DEBIAN_DIGEST}
# VERSION is that of Cargo.toml; `make test` compares them. REVISION: docker build --build-arg REVISION=$(git rev-parse HEAD)
ARG VERSION=0.1.0
ARG REVISION=
LABEL org.opencontainers.image.title="pgtenant" \
      org.opencontainers.image.description="A tenant-routing PostgreSQL proxy" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
RUN groupadd --system --gid 10001 pgtenant \
 && useradd --system --uid 10001 --gid pgtenant --home-dir /nonexistent --shell /usr/sbin/nologin pgtenant \
 && install -d -o 10001 -g 10001 -m 0700 /var/log/pgtenant
COPY --from=build /usr/local/bin/pgtenant /usr/local/bin/pgtenant
# Mount the config's directory at /etc/pgtenant, read-only, readable by uid 10001. To be reached from outside, it has to
# listen on 0.0.0.0, not on 127.0.0.1.
# A relative `audit.file` is beside the config, where nothing can be written: say /var/log/pgtenant/audit.jsonl, and
# mount a volume at /var/log/pgtenant that uid 10001 may write, or it is gone with the container.
USER 10001:10001
EXPOSE 6432 9187
# New clients are refused, and those who are there may finish: `timeouts.shutdown` in the config.
# Give the container longer than that (docker stop --time).
STOPSIGNAL SIGTERM
# Asks /readyz of the `http` address in the config.
HEALTHCHECK --interval=10s --timeout=3s --start-period=5s --retries=3 \
    CMD ["pgtenant", "healthcheck", "--config", "/etc/pgtenant/pgtenant.yaml"]
ENTRYPOINT ["pgtenant"]
CMD ["serve", "--config", "/etc/pgtenant/pgtenant.yaml"]
