"""Try-on maths: from logits to nails, their fingers, angles and extents, and to masks on the photo."""

from nailcore.tryon.components import Nail, find_nails, label_components
from nailcore.tryon.direction import angle_of, angular_error_deg, mean_direction
from nailcore.tryon.mask import input_to_photo, mask_on_photo, nail_mask, nail_score, photo_to_input

__all__ = [
    "Nail",
    "angle_of",
    "angular_error_deg",
    "find_nails",
    "input_to_photo",
    "label_components",
    "mask_on_photo",
    "mean_direction",
    "nail_mask",
    "nail_score",
    "photo_to_input",
]
