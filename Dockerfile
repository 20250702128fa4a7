# One image for the server and the clients: fedsim, Flower and torch, at the tested versions.
#
#   docker build -t fedsim .
#
# Wheels in the folder wheels/ are preferred to downloads. Put torch's CPU build there, or name the
# index that has it: the build that comes by default carries CUDA, some gigabytes of it.
#
#   docker build -t fedsim --build-arg TORCH=torch==2.13.0+cpu --build-arg TORCH_INDEX=URL .

ARG BASE=python:3.11-slim

FROM ${BASE} AS build
ARG WHEELS=wheels
ARG TORCH=torch
ARG TORCH_INDEX=
# What a deployed federation never uses: Ray runs simulations, pictures are drawn where reports are
# made, and uv installs what is installed already.
ARG WITHOUT="ray matplotlib fonttools pillow kiwisolver contourpy uv"
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /src
COPY LICENSE ${WHEELS}* /wheels/
COPY constraints.txt pyproject.toml ./
# The dependencies first: they are built again only when they change. Libraries' own tests, headers
# and build tools stay behind. The bytecode that pip compiled stays: Flower starts processes, and
# compiling torch's modules in each would take seconds.
RUN python -m venv /venv \
 && /venv/bin/python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies'], sep='\n')" > /dependencies.txt \
 && /venv/bin/pip install --only-binary :all: --find-links /wheels ${TORCH_INDEX:+--extra-index-url ${TORCH_INDEX}} -c constraints.txt "${TORCH}" -r /dependencies.txt \
 && /venv/bin/pip uninstall --yes ${WITHOUT} \
 && site=$(/venv/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))") \
 && find "$site/torch/bin" -type f ! -name torch_shm_manager -delete \
 && rm -rf "$site"/torch/test "$site"/torch/include "$site"/torch/share \
 && rm -rf "$site"/pyarrow/include "$site"/pyarrow/tests \
 && rm -f "$site"/pyarrow/libarrow_flight.* "$site"/pyarrow/libarrow_s3.* \
 && find "$site"/numpy "$site"/pandas "$site"/scipy "$site"/sklearn "$site"/sympy \
      -type d -name tests -prune -exec rm -rf {} +
COPY README.md LICENSE CHANGELOG.md docker-compose.yml docker-compose.dev.yml ./
COPY fedsim fedsim
COPY clients clients
COPY server server
COPY configs configs
RUN /venv/bin/pip install --no-deps --find-links /wheels . \
 && /venv/bin/pip uninstall --yes pip setuptools

FROM ${BASE}
ARG VERSION=0.1.0
LABEL org.opencontainers.image.title="fedsim" \
      org.opencontainers.image.description="Federated learning, measured: server and clients" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}"
# /state and /claims are where volumes are put; whoever runs the containers may write there.
RUN useradd --uid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin fedsim \
 && install -d -m 1777 /state /claims
COPY --from=build /venv /venv
ENV PATH=/venv/bin:$PATH \
    HOME=/tmp \
    FLWR_HOME=/tmp/flwr \
    PYTHONUNBUFFERED=1 \
    NO_PROXY=superlink,gate,localhost,127.0.0.1 \
    no_proxy=superlink,gate,localhost,127.0.0.1 \
    FLWR_TELEMETRY_ENABLED=0 \
    FLWR_DISABLE_UPDATE_CHECK=1 \
    FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION=1 \
    FEDSIM_HEALTH=http://127.0.0.1:9094/health
USER 10001
WORKDIR /tmp
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-I", "-m", "fedsim.deployment.health"]
CMD ["fedsim", "--help"]
