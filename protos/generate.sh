#!/usr/bin/env bash
# Generate xinf/_pb from protos/: generate.sh PYTHON TOOLS_DIR [OUT_DIR]
# TOOLS_DIR holds grpcio-tools 1.71.2 (protoc 29): code from a newer protoc refuses the protobuf runtime that CUDA vLLM
# pins (5.29.6). The proto path maps protos/ to xinf/_pb/, so that the generated imports are package imports.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
python=$1 tools=$2 out=${3:-$root}
PYTHONPATH=$tools "$python" -W ignore -m grpc_tools.protoc -I "xinf/_pb=$root/protos" \
  --python_out="$out" --pyi_out="$out" --grpc_python_out="$out" \
  "$root"/protos/engine_service.proto "$root"/protos/meta_service.proto
