# The command as a container: `docker build -t pipeline .`, then `docker run pipeline --help`. See docs/deploy/container.md.
FROM python:3.13-slim AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
RUN python -m venv /opt/pipeline
WORKDIR /build
COPY requirements-image.lock ./
RUN /opt/pipeline/bin/pip install --require-hashes -r requirements-image.lock
COPY pyproject.toml README.md LICENSE ./
COPY pipeline pipeline
RUN /opt/pipeline/bin/pip install --no-build-isolation --no-deps . && /opt/pipeline/bin/pip uninstall --yes pip

FROM python:3.13-slim
RUN useradd --uid 10001 --create-home pipeline
COPY --from=build /opt/pipeline /opt/pipeline
ENV PATH=/opt/pipeline/bin:$PATH PYTHONUNBUFFERED=1
WORKDIR /work
RUN chown 10001:10001 /work
COPY --chown=10001:10001 jobs jobs
USER 10001
ENTRYPOINT ["pipeline"]
CMD ["--help"]
