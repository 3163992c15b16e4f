"""Other people's labelled photographs, read into our format: mask folders, COCO, LabelMe, YOLO-seg."""

from nailcore.data.importing.run import FORMATS, ImportOrder, ImportRecord, import_set

__all__ = ["FORMATS", "ImportOrder", "ImportRecord", "import_set"]
