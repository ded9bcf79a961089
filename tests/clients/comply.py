"""Runs llm-comply for one format: python comply.py PROGRAM BASE_URL FORMAT.

Every test must pass but those of what is documented as not implemented; those are listed as SKIP."""

import json
import subprocess
import sys

program, base, kind = sys.argv[1:]
ABSENT = ("tool", "function", "image", "vision", "multimodal", "json", "structured", "schema")
command = [program, "-u", base + "/v1", "-m", "m", "-k", "test-key", "--format", kind, "--json", "--timeout", "20"]
run = subprocess.run(command, capture_output=True, text=True, timeout=100)
report = json.loads(run.stdout)
failed = 0
for test in report["results"]:
    name, status = test.get("id") or test.get("name"), test["status"]
    absent = any(word in name.lower() for word in ABSENT)
    if status == "passed":
        print("ok", name)
    elif absent:
        print("SKIP:", name, "is about what is not implemented")
    else:
        failed += 1
        print("FAILED", name, json.dumps(test)[:1500])
assert report["results"], report
sys.exit(failed > 0)
