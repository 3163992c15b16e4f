"""Makes the pack of embedded images from rendered sets; needed only when the pack is made anew."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path

from nailcore.data.coco import ANNOTATIONS, CocoInfo, LabelledImage, build_coco, write_coco
from nailcore.data.folder import Dataset, Sample, SplitFile
from nailcore.data.synth.embedded import SPLIT
from nailcore.errors import DataError
from nailcore.storage import replacing

NAME = "embedded synthetic hands"
NOTE = (
    "Rendered by Blender's Cycles from the MakeHuman hand mesh (CC0). Not photographs: figures on them say "
    "whether the tools work, not how well a network does on real hands."
)
_EPOCH = (1980, 1, 1, 0, 0, 0)  # equal content gives an equal archive


def make_pack(out: Path, test: tuple[Dataset, Sequence[str]], train: tuple[Dataset, Sequence[str]]) -> None:
    """Write the archive: images named by part and place, their labels, and the split by person.

    Args:
        out: the .zip file.
        test: a rendered set, and the names of its images in the order of the test part.
        train: the same for the training part.

    Raises:
        DataError: a name is unknown, or a person stands on both sides.
    """
    chosen = [("test", *pair) for pair in _find(*test)] + [("train", *pair) for pair in _find(*train)]
    parts: list[LabelledImage] = []
    groups: dict[str, tuple[str, ...]] = {}
    held_out: list[str] = []
    with replacing(out) as scratch, zipfile.ZipFile(scratch, "w", zipfile.ZIP_STORED) as archive:
        for part, number, sample in chosen:
            stem, person = f"{part}-{number:03d}", str(sample.record.subject)
            if part == "train" and person in held_out:
                raise DataError(f"{sample.name}: {person} is in the test part as well.")
            groups[person] = (*groups.get(person, ()), stem)
            if part == "test" and person not in held_out:
                held_out.append(person)
            index = sample.load_labels().nail_index
            parts.append(LabelledImage.of(f"{stem}.jpg", index, sample.record))
            _store(archive, f"images/{stem}.jpg", sample.image.read_bytes())
        info = CocoInfo(description=NAME, synthetic=True, licence="CC0-1.0", note=NOTE)
        labels = scratch.with_suffix(".json")
        write_coco(labels, build_coco(info, parts))
        _store(archive, ANNOTATIONS, labels.read_bytes(), squeeze=True)
        split = SplitFile(dataset=NAME, note="By person.", groups=groups, held_out=tuple(held_out))
        _store(archive, SPLIT, (split.model_dump_json(indent=1) + "\n").encode(), squeeze=True)


def _find(dataset: Dataset, names: Sequence[str]) -> list[tuple[int, Sample]]:
    samples = {sample.name: sample for sample in dataset.samples}
    unknown = sorted(set(names) - set(samples))
    if unknown:
        raise DataError(f"{dataset.root}: has no image '{unknown[0]}'.")
    return [(number, samples[name]) for number, name in enumerate(names)]


def _store(archive: zipfile.ZipFile, name: str, data: bytes, *, squeeze: bool = False) -> None:
    entry = zipfile.ZipInfo(name, _EPOCH)
    entry.external_attr = 0o644 << 16
    archive.writestr(entry, data, zipfile.ZIP_DEFLATED if squeeze else zipfile.ZIP_STORED)
