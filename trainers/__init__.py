"""Athanor's trainers: a process of their own that teaches a Stable Diffusion model something new."""

__version__ = "0.1.0"
