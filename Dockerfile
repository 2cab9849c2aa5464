# docker build -t vizsla .  &&  docker run --rm -v "$PWD:/work" vizsla run data
FROM python:3.12-slim

WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY src src
# For a smaller image without CUDA libraries: --build-arg INDEX=<PyTorch's index of CPU builds>
ARG INDEX=""
RUN pip install --no-cache-dir ${INDEX:+--extra-index-url "$INDEX"} .
WORKDIR /work
ENTRYPOINT ["vizsla"]
CMD ["--help"]
