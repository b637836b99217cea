"""File formats: names, shapes and metadata of everything that is read and written.

Needs the standard library, torch, safetensors and PyYAML only, so that a WebUI's process can import it.
"""
