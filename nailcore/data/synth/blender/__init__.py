"""The script that Blender's Python runs in a process of its own; nothing here is imported by nailtool."""
