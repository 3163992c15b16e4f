"""Stands in for the MediaPipe worker: answers from ``answers.json`` beside it, by the photo's stem."""

from __future__ import annotations

import json
import sys
from pathlib import Path

answers = json.loads((Path(__file__).parent / "answers.json").read_text())
sys.stdout.write(json.dumps({"mediapipe": answers["version"]}) + "\n")
sys.stdout.flush()
for line in sys.stdin:
    request = json.loads(line)
    answer = answers["photos"][Path(request["path"]).stem]
    if answer == "die":
        sys.stderr.write("last words\n")
        sys.exit(1)
    sys.stdout.write(json.dumps({"id": request["id"], **answer}) + "\n")
    sys.stdout.flush()
