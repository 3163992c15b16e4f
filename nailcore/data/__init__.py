"""Data: folders of labelled photographs, their fixed splits, augmentation, and rendered hands."""
