"""Pictures and captions: from a folder on disk to batches of latents (see `trainers.data.dataset.prepare`)."""
