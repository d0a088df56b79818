# syntax=docker/dockerfile:1

FROM rust:1-slim-bookworm AS build
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

FROM debian:bookworm-slim
RUN groupadd --system --gid 10001 pgtenant \
 && useradd --system --uid 10001 --gid pgtenant --home-dir /nonexistent --shell /usr/sbin/nologin pgtenant
COPY --from=build /usr/local/bin/pgtenant /usr/local/bin/pgtenant
# Mount the config there, readable by uid 10001. To be reached from outside, it has to listen on
# 0.0.0.0, not on 127.0.0.1.
VOLUME /etc/pgtenant
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
