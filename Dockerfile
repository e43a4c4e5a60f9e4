# One image contains every command: `docker run wds ingest`, `docker run wds dispatcher`, and so on.
# In production, pin the base by digest as well: --build-arg PYTHON=3.13.15-slim-trixie@sha256:...
ARG PYTHON=3.13.15-slim-trixie

FROM python:${PYTHON} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /build
COPY requirements/build.txt requirements/image.txt requirements/
# Build wheels of everything first, with pinned build tools. /opt/wds contains no pip.
RUN python -m venv /tools \
 && /tools/bin/pip install --require-hashes --only-binary :all: -r requirements/build.txt \
 && /tools/bin/pip wheel --require-hashes --no-build-isolation --wheel-dir wheels \
      -r requirements/image.txt \
 && python -m venv --without-pip /opt/wds \
 && pip --python /opt/wds/bin/python install --no-index --no-deps wheels/*.whl
COPY pyproject.toml README.md LICENSE ./
COPY src src
RUN /tools/bin/pip wheel --no-deps --no-build-isolation --wheel-dir dist . \
 && pip --python /opt/wds/bin/python install --no-index --no-deps dist/*.whl

FROM python:${PYTHON}
LABEL org.opencontainers.image.title="wds" \
      org.opencontainers.image.description="Webhook delivery on MongoDB" \
      org.opencontainers.image.licenses="MIT"
RUN groupadd --system --gid 10001 wds \
 && useradd --system --uid 10001 --gid wds --no-create-home --shell /usr/sbin/nologin wds
COPY --from=build /opt/wds /opt/wds
# The image writes nothing at run time, so the root may be read-only. pip has compiled /opt/wds. The
# base image has no bytecode of the standard library; without this step each health check would
# compile it again.
RUN python -m compileall -q -x '/(test|tests|idlelib|site-packages)/' "$(python -c 'import os; print(os.path.dirname(os.__file__))')"
ENV PATH=/opt/wds/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    WDS_HOST=0.0.0.0
WORKDIR /srv/wds
USER 10001:10001
EXPOSE 8000 8001 9101
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
  CMD ["python", "-m", "wds.health"]
# Exec form: the process is PID 1, so it receives SIGTERM itself and then finishes its work.
ENTRYPOINT ["python", "-m", "wds"]
CMD ["ingest"]
