# One image for the server and the clients: fedsim, Flower and torch, at the tested versions.
#
#   docker build -t fedsim .
#
# Wheels in the folder wheels/ are preferred to downloads: put torch's CPU build there, and the
# image is some gigabytes smaller.

FROM python:3.11-slim AS build
WORKDIR /src
RUN python -m venv /venv
COPY constraints.txt pyproject.toml README.md LICENSE ./
COPY fedsim fedsim
COPY clients clients
COPY server server
COPY configs configs
COPY LICENSE wheels* /wheels/
RUN /venv/bin/pip install --no-cache-dir --find-links /wheels -c constraints.txt .

FROM python:3.11-slim
RUN useradd --uid 10001 --create-home fedsim && install -d -o fedsim /state
COPY --from=build /venv /venv
WORKDIR /app
COPY pyproject.toml README.md LICENSE ./
COPY clients clients
COPY server server
COPY configs configs
ENV PATH=/venv/bin:$PATH \
    FLWR_TELEMETRY_ENABLED=0 \
    FLWR_DISABLE_UPDATE_CHECK=1 \
    FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION=1 \
    RAY_USAGE_STATS_ENABLED=0
USER fedsim
CMD ["fedsim", "--help"]
