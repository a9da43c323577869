# The ML backend and the `cellai` command. Label Studio has its own image, see docker-compose.yml.
# Two stages: what installs packages (pip, uv) does not get into the image that runs.
FROM python:3.12-slim-bookworm AS build

# cpu: about 1.3 GB; cu132 and the like add the CUDA libraries (several GB) for a GPU host. Both come from
# PyTorch's own index; empty: from the one of all other packages, for a network that has only that.
ARG TORCH_BACKEND=cpu

ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    UV_NO_CACHE=1

WORKDIR /app

# Dependencies before the code, so that a change of code does not install them again. pyproject.toml
# says which (no Label Studio, no test tools), requirements.txt says which versions.
COPY pyproject.toml requirements.txt ./
RUN python -m venv --without-pip /venv \
    && pip install "$(grep '^uv==' requirements.txt)" \
    && uv pip compile pyproject.toml --constraints requirements.txt --no-header --no-annotate \
        ${TORCH_BACKEND:+--torch-backend "$TORCH_BACKEND"} --output-file /tmp/runtime.txt \
    && uv pip install --python /venv/bin/python --no-deps --compile-bytecode \
        ${TORCH_BACKEND:+--torch-backend "$TORCH_BACKEND"} -r /tmp/runtime.txt \
    && rm /tmp/runtime.txt

COPY README.md label_config.xml ./
COPY backend backend
COPY converters converters
RUN uv pip install --python /venv/bin/python --no-deps --editable .

FROM python:3.12-slim-bookworm

# The base image's own pip goes, too.
RUN python -m pip uninstall --yes --quiet pip
COPY --from=build /venv /venv
COPY --from=build /app /app
WORKDIR /app

# Fixed numbers, so that volumes keep their owner from one build to the next.
RUN groupadd --gid 1001 cellai \
    && useradd --uid 1001 --gid cellai --home-dir /data --no-create-home cellai \
    && install --directory --owner cellai --group cellai /data /files
USER cellai

ENV PATH=/venv/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    CELLAI_HOST=0.0.0.0 \
    CELLAI_PORT=9090 \
    CELLAI_DATA_DIR=/data \
    CELLAI_FILES_DIR=/files

VOLUME ["/data", "/files"]
EXPOSE 9090

# The first start fetches the ImageNet weights into /data.
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --retries=6 \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:9090/health', timeout=4)"]

CMD ["gunicorn", "--config", "python:backend.gunicorn_conf", "backend._wsgi:app"]
