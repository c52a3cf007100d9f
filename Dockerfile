# The server and its traces, without what only calibration needs. How to build and to run it: docs/deployment.md.
#
#   BASE         Debian bookworm, from wherever
#   EXTRAS       of askance, to install; "tracing": without torch, for bundles that have a graph
#   TORCH_INDEX  where torch's CPU builds are; empty: torch comes from the package index itself, with CUDA
#   wheels       a folder of wheels to take before any index: --build-context wheels=FOLDER
#   pip          a pip.conf of the builder's own, for mirrors; it stays out of the image: --secret id=pip,src=FILE
ARG BASE=docker.io/library/debian:bookworm-slim

FROM scratch AS wheels

FROM ${BASE} AS build
ARG EXTRAS=torch,tracing
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN apt-get update && apt-get install --yes --no-install-recommends python3 python3-venv
COPY . /source
# Last goes what serving never reads: headers, tests, what makes other models of models, and what installs packages.
RUN --mount=type=bind,from=wheels,target=/wheels --mount=type=secret,id=pip,target=/etc/pip.conf \
    python3 -m venv /opt/askance \
    && /opt/askance/bin/pip install --no-cache-dir --disable-pip-version-check --find-links /wheels \
        ${TORCH_INDEX:+--extra-index-url "${TORCH_INDEX}"} --constraint /source/constraints.txt "/source[${EXTRAS}]" \
    && cd /opt/askance/lib/python3*/site-packages \
    && rm -rf torch/include torch/test onnxruntime/transformers onnxruntime/quantization onnxruntime/tools \
    && find numpy -type d -name tests -prune -exec rm -rf {} + \
    && /opt/askance/bin/pip uninstall --yes --quiet pip setuptools

FROM ${BASE}
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/log/*
COPY --from=build /opt/askance /opt/askance
# Bytecode was compiled by pip; nothing is written when it runs, so the root file system may be read-only.
ENV PATH=/opt/askance/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
# A number, not a name: Kubernetes can tell only from a number that it is not root.
USER 10001:10001
EXPOSE 8500 9500
# http.client, because urllib would ask a proxy where one is set.
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s CMD ["python", "-c", "\
import http.client, sys; \
connection = http.client.HTTPConnection('127.0.0.1', 9500, timeout=4); \
connection.request('GET', '/healthz'); \
sys.exit(connection.getresponse().status != 200)"]
# Without a shell in between, SIGTERM reaches the server, and it drains.
ENTRYPOINT ["askance"]
# The health check asks from inside, Prometheus from outside: publish port 9500 where it is meant to be read.
CMD ["serve", "/bundle", "--host", "0.0.0.0", "--metrics-host", "0.0.0.0"]
