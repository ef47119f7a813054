# GPU nodes. From the checkout's top: docker build -f cluster/images/gpu.Dockerfile -t registry.example/video-search:0.2.0-gpu .
# The CUDA libraries come with torch's packages; the driver comes from the host through NVIDIA's container runtime.
FROM python:3.11-slim-bookworm

RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ openssh-client rsync wget \
    && rm -rf /var/lib/apt/lists/*

ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1
ENV RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility

WORKDIR /build
COPY constraints.txt ./
COPY cluster/images/constraints-gpu.txt ./
COPY pyproject.toml README.md LICENSE ./
COPY pipeline pipeline
COPY jobs jobs
RUN pip install --constraint constraints.txt --constraint constraints-gpu.txt ".[gpu,cluster]"

RUN groupadd --gid 1000 ray && useradd --uid 1000 --gid 1000 --create-home --shell /bin/bash ray
ENV HOME=/home/ray
USER 1000:1000
WORKDIR /home/ray
