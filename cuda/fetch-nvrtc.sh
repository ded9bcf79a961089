#!/usr/bin/env bash
# Fetches NVIDIA's run-time compiler from its PyPI package into .models/nvrtc at the repository root
# (or $PONDER_NVRTC), for the compile checks: no GPU, no driver and no toolkit are needed.
#
#   cuda/fetch-nvrtc.sh        NVRTC 13.0.88 (90 MB to download, 109 MB kept)
#
# It needs python3 with pip; nothing is installed, two files of the wheel are unpacked. NVIDIA's
# licence is in the wheel; the libraries are not part of this repository.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
folder=${PONDER_NVRTC:-$root/.models/nvrtc}
version=13.0.88

if [ -f "$folder/libnvrtc.so.13" ] && [ -f "$folder/libnvrtc-builtins.so.13.0" ]; then
    echo "fetch-nvrtc: NVRTC is there: $folder" >&2
    exit 0
fi
mkdir -p "$folder"
scratch=$(mktemp -d "$folder/.fetch.XXXXXX")
trap 'rm -rf "$scratch"' EXIT
python3 -m pip --disable-pip-version-check -q download --no-deps --only-binary :all: -d "$scratch" "nvidia-cuda-nvrtc==$version"
python3 - "$scratch" "$folder" <<'PYTHON'
import pathlib, shutil, sys, zipfile
scratch, folder = map(pathlib.Path, sys.argv[1:])
[wheel] = scratch.glob("*.whl")
with zipfile.ZipFile(wheel) as archive:
    for name in ["libnvrtc-builtins.so.13.0", "libnvrtc.so.13"]:
        with archive.open(f"nvidia/cu13/lib/{name}") as source, open(scratch / name, "wb") as target:
            shutil.copyfileobj(source, target, 1 << 20)
        (scratch / name).rename(folder / name)
PYTHON
echo "fetch-nvrtc: NVRTC $version is ready: $folder" >&2
