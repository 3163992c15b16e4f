"""Finds hands with MediaPipe, in a Python of its own: JSON lines in, JSON lines out; imports nothing of ours.

MediaPipe's hand models ship inside its wheels up to 0.10.21, which need NumPy 1 and protobuf 4: they
cannot live beside TensorFlow 2.19 and NumPy 2. So this file is run as a script by another interpreter:

    PYTHON hands_worker.py < requests > answers

Request: ``{"id": 1, "path": "photo.jpg"}``. The first answer is ``{"mediapipe": "0.10.21"}``, then one a
request: ``{"id": 1, "hands": [{"view": "turned 90", "label": "Left", "score": 0.98, "points": [...]}]}``
with 21 landmarks [x, y] in pixels of the upright photo, or ``{"id": 1, "error": "..."}``. ``label`` is
MediaPipe's word for the hand as it stands in the photo: where a view is mirrored, it is turned round.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from typing import Any

LONG_SIDE_PX = 960  # MediaPipe's palm detector works at 192 px: more helps nothing
BORDER = 0.25  # of the long side: hands that fill the photo are found with some space around them
MIN_DETECTION = 0.3
MAX_HANDS = 4
# name, quarter turns anticlockwise, mirrored, border
VIEWS = (
    ("plain", 0, False, False),
    ("bordered", 0, False, True),
    ("turned 90", 1, False, True),
    ("turned 180", 2, False, True),
    ("turned 270", 3, False, True),
    ("mirrored", 0, True, True),
)


def make_view(np: Any, image: Any, turns: int, mirrored: bool, border: bool) -> tuple[Any, Any]:
    """A view (h, w, 3) of an image and the (2, 3) matrix from its pixels to those of the image."""
    height, width = image.shape[:2]
    back = np.array([[1.0, 0, 0], [0, 1.0, 0]])
    if mirrored:
        image = image[:, ::-1]
        back = np.array([[-1.0, 0, width], [0, 1.0, 0]])
    for _ in range(turns):
        # One turn anticlockwise: (x, y) of the turned image was (old width - y, x) of the one before.
        old_width = image.shape[1]
        image = np.rot90(image)
        turn = np.array([[0, -1.0, old_width], [1.0, 0, 0]])
        back = np.hstack([back[:, :2] @ turn[:, :2], back[:, :2] @ turn[:, 2:] + back[:, 2:]])
    # Grey to a square: landmarks of other shapes are a little off (MediaPipe warns of it).
    side = round(max(height, width) * (1 + 2 * BORDER * border))
    top, left = (side - image.shape[0]) // 2, (side - image.shape[1]) // 2
    right, bottom = side - image.shape[1] - left, side - image.shape[0] - top
    image = np.pad(image, ((top, bottom), (left, right), (0, 0)), constant_values=128)
    back = np.hstack([back[:, :2], back[:, 2:] - back[:, :2] @ np.array([[left], [top]])])
    return np.ascontiguousarray(image), back


def read_hands(  # noqa: PLR0917 - what one view is
    np: Any, found: Any, view: str, size: tuple[int, int], back: Any, mirrored: bool
) -> list[Any]:
    """MediaPipe's answer for one view, in pixels of the image."""
    hands = []
    for marks, kinds in zip(found.multi_hand_landmarks or (), found.multi_handedness or (), strict=False):
        kind = kinds.classification[0]
        points = np.array([(m.x * size[0], m.y * size[1]) for m in marks.landmark])
        points = points @ back[:, :2].T + back[:, 2]
        label = {"Left": "Right", "Right": "Left"}[kind.label] if mirrored else kind.label
        hands.append(
            {"view": view, "label": label, "score": round(kind.score, 4), "points": points.round(2).tolist()}
        )
    return hands


def find_hands(np: Any, cv2: Any, detector: Any, path: str) -> list[Any]:
    """Hands of one photo in every view."""
    image = cv2.imread(path, cv2.IMREAD_COLOR)
    if image is None:
        raise ValueError("not a readable image")
    image = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
    scale = min(1.0, LONG_SIDE_PX / max(image.shape[:2]))
    if scale < 1:
        image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    hands = []
    for name, turns, mirrored, border in VIEWS:
        view, back = make_view(np, image, turns, mirrored, border)
        found = detector.process(view)
        hands += read_hands(np, found, name, (view.shape[1], view.shape[0]), back / scale, mirrored)
    return hands


def main() -> None:
    """Answer requests until the input ends."""
    np, cv2 = importlib.import_module("numpy"), importlib.import_module("cv2")
    # MediaPipe's C++ logs to the standard output's neighbour only; answers go to a copy of stdout.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    mediapipe = importlib.import_module("mediapipe")
    answers.write(json.dumps({"mediapipe": mediapipe.__version__}) + "\n")
    answers.flush()
    with mediapipe.solutions.hands.Hands(
        static_image_mode=True,
        max_num_hands=MAX_HANDS,
        model_complexity=1,
        min_detection_confidence=MIN_DETECTION,
    ) as detector:
        for line in sys.stdin:
            request = json.loads(line)
            try:
                answer = {"id": request["id"], "hands": find_hands(np, cv2, detector, request["path"])}
            except (ValueError, RuntimeError) as error:
                answer = {"id": request["id"], "error": str(error)}
            answers.write(json.dumps(answer) + "\n")
            answers.flush()


if __name__ == "__main__":
    main()
