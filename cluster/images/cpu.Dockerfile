# Head and CPU nodes. From the checkout's top: docker build -f cluster/images/cpu.Dockerfile -t registry.example/video-search:0.2.0-cpu .
FROM python:3.11-slim-bookworm

# g++ compiles the scoring kernel on first use; wget is for KubeRay's probes; rsync and ssh are for `ray up`.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ openssh-client rsync wget \
    && rm -rf /var/lib/apt/lists/*

ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1
ENV RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0

WORKDIR /build
COPY constraints.txt ./
# PyPI's torch brings CUDA (several GB); the same version without it, its own dependencies come with the next step.
RUN pip install --no-deps --index-url https://download.pytorch.org/whl/cpu "$(grep '^torch==' constraints.txt)"
COPY pyproject.toml README.md LICENSE ./
COPY pipeline pipeline
COPY jobs jobs
RUN pip install --constraint constraints.txt ".[cpu,cluster]"

# 1000 is also the first user of most cloud images: files that `ray up` mounts (the token) stay readable to it alone.
RUN groupadd --gid 1000 ray && useradd --uid 1000 --gid 1000 --create-home --shell /bin/bash ray
ENV HOME=/home/ray
USER 1000:1000
WORKDIR /home/ray
