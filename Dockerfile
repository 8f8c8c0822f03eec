# isopose in a container, as a user without rights.
#
#   docker build -t isopose .                                        on a CPU
#   docker build -t isopose:cuda --build-arg BASE=pytorch/pytorch:2.6.0-cuda12.4-cudnn9-runtime .
#   docker run --rm -v "$PWD:/work" -u "$(id -u):$(id -g)" isopose predict model scan.nii.gz --output results
#   docker run --rm --gpus all …     with the second image
#
# On a CPU pip brings PyTorch's CUDA build unless PIP_ARGS names an index of its CPU builds.
ARG BASE=python:3.11-slim
FROM ${BASE}
ARG PIP_ARGS=""
ARG EXTRAS=""
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1 HOME=/tmp
COPY pyproject.toml README.md LICENSE /source/
COPY src /source/src
# torch first and only where the base brings none: that layer is the large one and seldom changes.
RUN python -m pip install ${PIP_ARGS} "torch>=2.6" \
    && python -m pip install "/source${EXTRAS}" \
    && isopose --version
USER 1000
WORKDIR /work
ENTRYPOINT ["isopose"]
CMD ["--help"]
