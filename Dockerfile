# The server on a CPU. Build and start it, with the embedded pair:
#
#   docker build -t ouroboros .
#   printf '%s\n' "$(openssl rand -hex 24)" > api-keys
#   docker run --rm -p 127.0.0.1:8000:8000 -v ./api-keys:/run/api-keys:ro -v ouroboros:/var/lib/ouroboros ouroboros
#
# With models of your own: … -v ./models:/models:ro ouroboros --target /models/T --draft /models/D
#
# The volume keeps what may be made again (compiled kernels, downloads) and what is remembered of texts. PIP_ARGS are
# further arguments of pip, such as the index that has PyTorch's builds without CUDA, which are ten times smaller:
#   docker build --build-arg PIP_ARGS='--extra-index-url …' -t ouroboros .

FROM python:3.12-slim

# The kernels are compiled on the machine that they run on: for its processor, once, in half a minute.
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /usr/src/ouroboros
COPY pyproject.toml constraints.txt README.md LICENSE NOTICE ./
COPY src src
ARG PIP_ARGS=""
RUN pip install --no-cache-dir --root-user-action=ignore -c constraints.txt $PIP_ARGS '.[server]'

RUN useradd --system --uid 10001 --home-dir /var/lib/ouroboros --create-home ouroboros
USER ouroboros
WORKDIR /var/lib/ouroboros
ENV XDG_CACHE_HOME=/var/lib/ouroboros/cache HF_HOME=/var/lib/ouroboros/huggingface PYTHONUNBUFFERED=1
VOLUME /var/lib/ouroboros
EXPOSE 8000
STOPSIGNAL SIGTERM

# Loading a large model takes minutes; a server that has loaded answers at once.
HEALTHCHECK --interval=30s --timeout=5s --start-period=10m \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/health', timeout=4)"]

ENTRYPOINT ["ouroboros", "serve", "--host", "0.0.0.0", "--port", "8000", "--api-key-file", "/run/api-keys", \
            "--memory-dir", "/var/lib/ouroboros/memory"]
